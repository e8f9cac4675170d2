//! The keys of the store. Each begins with the project's id, or with `_` for
//! what belongs to the whole server.

use skiff_types::{Digest, HookName, ProjectId, ProjectName, RevisionId, SecretName, ServiceName};

pub(crate) const PROJECTS: &str = "_/project/";
pub(crate) const TOKENS: &str = "_/token/";
pub(crate) const ACCESS_KEYS: &str = "_/access-key/";
pub(crate) const USED: &str = "_/used/";

pub(crate) fn project(id: &ProjectId) -> String {
    format!("{PROJECTS}{id}")
}

pub(crate) fn project_name(name: &ProjectName) -> String {
    format!("_/project-name/{name}")
}

pub(crate) fn token(id: &str) -> String {
    format!("{TOKENS}{id}")
}

/// That a revision uses an image.
pub(crate) fn used(image: &Digest, revision: &RevisionId) -> String {
    format!(
        "{USED}{}/{}/{}",
        image.hex(),
        revision.project,
        revision.name()
    )
}

pub(crate) fn used_by(image: &Digest) -> String {
    format!("{USED}{}/", image.hex())
}

pub(crate) fn services(project: &ProjectId) -> String {
    format!("{project}/service/")
}

pub(crate) fn service(project: &ProjectId, name: &ServiceName) -> String {
    format!("{project}/service/{name}")
}

pub(crate) fn number(project: &ProjectId, name: &ServiceName) -> String {
    format!("{project}/number/{name}")
}

pub(crate) fn numbers(project: &ProjectId) -> String {
    format!("{project}/number/")
}

pub(crate) fn revisions(project: &ProjectId, name: &ServiceName) -> String {
    format!("{project}/revision/{name}/")
}

pub(crate) fn revision(id: &RevisionId) -> String {
    format!("{}/revision/{}/{:05}", id.project, id.service, id.number)
}

/// That a revision is being validated: what a start has to repair.
pub(crate) fn pending(id: &RevisionId) -> String {
    format!("{}/pending/{}", id.project, id.name())
}

pub(crate) fn pendings(project: &ProjectId) -> String {
    format!("{project}/pending/")
}

pub(crate) fn secrets(project: &ProjectId) -> String {
    format!("{project}/secret/")
}

pub(crate) fn secret(project: &ProjectId, name: &SecretName) -> String {
    format!("{project}/secret/{name}")
}

/// Whose an access key is.
pub(crate) fn access_key(id: &str) -> String {
    format!("{ACCESS_KEYS}{id}")
}

/// The secrets of a project's access keys.
pub(crate) fn key_secrets(project: &ProjectId) -> String {
    format!("{project}/key-secret/")
}

pub(crate) fn key_secret(project: &ProjectId, id: &str) -> String {
    format!("{project}/key-secret/{id}")
}

pub(crate) fn functions(project: &ProjectId) -> String {
    format!("{project}/function/")
}

pub(crate) fn function(project: &ProjectId, name: &ServiceName) -> String {
    format!("{project}/function/{name}")
}

/// All versions of a project's functions.
pub(crate) fn function_versions(project: &ProjectId) -> String {
    format!("{project}/function-version/")
}

/// A version of a function; keys sort by number.
pub(crate) fn function_version(project: &ProjectId, name: &ServiceName, number: u32) -> String {
    format!("{project}/function-version/{name}/{number:010}")
}

/// Where a function URL's id leads.
pub(crate) fn function_url(id: &str) -> String {
    format!("_/function-url/{id}")
}

/// A project's layers.
pub(crate) fn layers(project: &ProjectId) -> String {
    format!("{project}/layer/")
}

pub(crate) fn layer(project: &ProjectId, name: &str) -> String {
    format!("{project}/layer/{name}")
}

pub(crate) fn schedules(project: &ProjectId) -> String {
    format!("{project}/schedule/")
}

pub(crate) fn schedule(project: &ProjectId, name: &str) -> String {
    format!("{project}/schedule/{name}")
}

/// A project's hooks.
pub(crate) fn hooks(project: &ProjectId) -> String {
    format!("{project}/hook/")
}

pub(crate) fn hook(project: &ProjectId, name: &HookName) -> String {
    format!("{project}/hook/{name}")
}

/// A project's event source mappings.
pub(crate) fn mappings(project: &ProjectId) -> String {
    format!("{project}/mapping/")
}

pub(crate) fn mapping(project: &ProjectId, id: &str) -> String {
    format!("{project}/mapping/{id}")
}

/// How far shards of a stream are, by the mapping.
pub(crate) fn mapping_shards(project: &ProjectId, id: &str) -> String {
    format!("{project}/mapping-shard/{id}/")
}

pub(crate) fn mapping_shard(project: &ProjectId, id: &str, shard: &str) -> String {
    format!("{project}/mapping-shard/{id}/{shard}")
}

/// That a source has a mapping to a function.
pub(crate) fn mapping_pair(project: &ProjectId, source: &str, function: &str) -> String {
    format!("{project}/mapping-pair/{source}/{function}")
}

/// What stands behind the last `/`.
pub(crate) fn last_part(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}
