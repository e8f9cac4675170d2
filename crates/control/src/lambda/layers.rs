//! Layers: zip files that functions share, below `/opt`.
//!
//! A layer's versions are numbered and never change; a function that uses one
//! has a copy of what it is made of, and so goes on when the version is
//! deleted.

use http::StatusCode;
use serde_json::{Value, json};
use skiff_lambda::{Code, LambdaError, LayerRef};
use skiff_types::{Digest, ProjectId};

use super::body;
use super::call::{Call, Reply, body as parse, invalid};
use super::policies::{PolicyChange, account_of, check_sid};
use super::record::{LayerRecord, LayerVersion, Statement, UsedLayer};
use super::{Front, show};
use crate::db::{Change, Found};
use crate::key;
use crate::library::Pin;
use crate::port::CodeRoot;

/// Layers of one function (AWS's limit).
const LAYERS_MAX: usize = 5;
/// Versions of one layer.
const VERSIONS_MAX: usize = 100;
/// Layers or versions in one reply.
const PAGE_MAX: usize = 50;
const DESCRIPTION_CHARS_MAX: usize = 256;
const LICENSE_CHARS_MAX: usize = 512;
/// Runtimes that a version may be for (botocore's service model).
const RUNTIMES_MAX: usize = 15;
/// How often a change is tried that another one has overtaken.
const TRIES: usize = 8;
const GET: &str = "lambda:GetLayerVersion";

fn missing(arn: &str) -> LambdaError {
    let message = format!("The resource you requested does not exist: {arn}");
    LambdaError::new(Code::ResourceNotFound, message)
}

fn too_long(what: &str, most: usize) -> LambdaError {
    invalid(format!("{what} is over {most} characters"))
}

impl Front {
    pub(crate) async fn publish_layer(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let wanted: body::PublishLayerVersion = parse(call)?;
        let name = self.own_layer(call, text)?;
        check_described(&wanted)?;
        let source = wanted.content.source()?;
        let (code, _pin) = self.stored_code(call, source, CodeRoot::Opt).await?;
        let version = LayerVersion {
            created_unix_ms: call.now_ms,
            description: wanted.description.unwrap_or_default(),
            license: wanted.license_info,
            runtimes: wanted.compatible_runtimes.unwrap_or_default(),
            architectures: wanted.compatible_architectures.unwrap_or_default(),
            sha256: code.digest,
            zip_bytes: code.zip_bytes,
            unpacked_bytes: code.unpacked_bytes,
            bootstrap: code.bootstrap,
            policy: None,
        };
        let publish = |record: &mut LayerRecord| {
            if record.versions.len() >= VERSIONS_MAX {
                let message = format!("{name} has {VERSIONS_MAX} versions: delete some");
                return Err(LambdaError::new(Code::ResourceConflict, message));
            }
            record.last_version += 1;
            record.versions.insert(record.last_version, version.clone());
            Ok(record.last_version)
        };
        let number = self.change_layer(call, &name, publish).await?;
        let shown = self.shown_layer(call, &call.project.id, &name, number, &version);
        Ok(Reply::json(StatusCode::CREATED, shown))
    }

    pub(crate) async fn list_layers(&self, call: &Call) -> Result<Reply, LambdaError> {
        if call.param("find") == Some("LayerVersion") {
            let arn = call.param("Arn").ok_or_else(|| invalid("Arn is missing"))?;
            return self.get_layer(call, arn, None).await;
        }
        let limit = call.page(PAGE_MAX)?;
        let prefix = key::layers(&call.project.id);
        let all = self.control.db().all::<LayerRecord>(&prefix).await?;
        // A layer that has no version left, or none that fits, is no layer.
        let fitting = all.iter().filter_map(|found| {
            let mut versions = found.record.versions.iter().rev();
            let newest = versions.find(|(_, version)| fits(call, version))?;
            Some((key::last_part(&found.key), newest))
        });
        Reply::listed(call, limit, "Layers", fitting, |name, (number, version)| {
            Ok(json!({
                "LayerName": name,
                "LayerArn": self.layer_arn(&call.project.id, name),
                "LatestMatchingVersion": self.shown_version(&call.project.id, name, *number, version),
            }))
        })
    }

    pub(crate) async fn list_layer_versions(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let name = self.own_layer(call, text)?;
        let limit = call.page(PAGE_MAX)?;
        let below: u32 = match call.param("Marker") {
            Some(marker) => marker.parse().map_err(invalid)?,
            None => u32::MAX,
        };
        let found = self.layer(&call.project.id, &name).await?;
        let versions = found.map(|found| found.record.versions).unwrap_or_default();
        let mut fitting = versions
            .range(..below)
            .rev()
            .filter(|(_, version)| fits(call, version));
        let (mut shown, mut last) = (Vec::new(), 0);
        for (number, version) in fitting.by_ref().take(limit) {
            shown.push(self.shown_version(&call.project.id, &name, *number, version));
            last = *number;
        }
        let more = fitting.next().is_some().then(|| last.to_string());
        Ok(Reply::page("LayerVersions", shown, more))
    }

    /// By name and number, or by the ARN of a version alone.
    pub(crate) async fn get_layer(
        &self,
        call: &Call,
        text: &str,
        number: Option<&str>,
    ) -> Result<Reply, LambdaError> {
        let (owner, name, number) = self.layer_version(call, text, number)?;
        let version = self.let_in(call, &owner, &name, number).await?;
        let shown = self.shown_layer(call, &owner, &name, number, &version);
        Ok(Reply::json(StatusCode::OK, shown))
    }

    pub(crate) async fn delete_layer(
        &self,
        call: &Call,
        text: &str,
        number: &str,
    ) -> Result<Reply, LambdaError> {
        let name = self.own_layer(call, text)?;
        let number: u32 = number.parse().map_err(invalid)?;
        if self.layer(&call.project.id, &name).await?.is_some() {
            let delete = |record: &mut LayerRecord| {
                record.versions.remove(&number);
                Ok(())
            };
            self.change_layer(call, &name, delete).await?;
        }
        Ok(Reply::empty())
    }

    pub(crate) async fn add_layer_permission(
        &self,
        call: &Call,
        text: &str,
        number: &str,
    ) -> Result<Reply, LambdaError> {
        let wanted: body::AddLayerVersionPermission = parse(call)?;
        let sid = wanted.statement_id;
        check_sid(&sid)?;
        if wanted.action != GET {
            return Err(invalid(format!("Action: {GET} is served")));
        }
        let statement = Statement {
            action: wanted.action,
            principal: account_of(&wanted.principal).to_owned(),
            source_arn: None,
            source_account: None,
            url_auth: None,
            via_url: None,
        };
        let revision_id = call.new_id();
        let arn = self.layer_version_arn(call, text, number)?;
        let added = PolicyChange {
            sid: &sid,
            expected: call.param("RevisionId"),
            revision_id: &revision_id,
        };
        let add = |version: &mut LayerVersion| {
            version.policy = Some(added.add(version.policy.as_ref(), &statement, &arn)?);
            Ok(())
        };
        self.change_version(call, text, number, add).await?;
        let shown = show::statement(&arn, &sid, &statement).to_string();
        let reply = json!({"Statement": shown, "RevisionId": revision_id});
        Ok(Reply::json(StatusCode::CREATED, reply))
    }

    pub(crate) async fn get_layer_policy(
        &self,
        call: &Call,
        text: &str,
        number: &str,
    ) -> Result<Reply, LambdaError> {
        let arn = self.layer_version_arn(call, text, number)?;
        let (owner, name, number) = self.layer_version(call, text, Some(number))?;
        self.owned(call, &owner)?;
        let version = self.let_in(call, &owner, &name, number).await?;
        let policy = version.policy.ok_or_else(|| missing(&arn))?;
        let shown = show::policy(&arn, &policy).to_string();
        let reply = json!({"Policy": shown, "RevisionId": policy.revision_id});
        Ok(Reply::json(StatusCode::OK, reply))
    }

    pub(crate) async fn remove_layer_permission(
        &self,
        call: &Call,
        text: &str,
        number: &str,
        sid: &str,
    ) -> Result<Reply, LambdaError> {
        let revision_id = call.new_id();
        let removed = PolicyChange {
            sid,
            expected: call.param("RevisionId"),
            revision_id: &revision_id,
        };
        let remove = |version: &mut LayerVersion| {
            version.policy = removed.remove(version.policy.as_ref())?;
            Ok(())
        };
        self.change_version(call, text, number, remove).await?;
        Ok(Reply::empty())
    }

    /// What functions that name these versions are made of, kept from
    /// collection as long as the pins live.
    pub(crate) async fn used_layers(
        &self,
        call: &Call,
        arns: Option<&[String]>,
    ) -> Result<(Option<Vec<UsedLayer>>, Vec<Pin>), LambdaError> {
        let Some(arns) = arns else {
            return Ok((None, Vec::new()));
        };
        if arns.len() > LAYERS_MAX {
            return Err(invalid(format!("at most {LAYERS_MAX} layers are expected")));
        }
        let (mut used, mut pins): (Vec<UsedLayer>, Vec<Pin>) = (Vec::new(), Vec::new());
        for arn in arns {
            let (owner, name, number) = self.layer_version(call, arn, None)?;
            let version = self.let_in(call, &owner, &name, number).await?;
            if !version.architectures.is_empty()
                && !version.architectures.iter().any(|one| one == "x86_64")
            {
                return Err(invalid(format!("the layer {arn} is not for x86_64")));
            }
            let arn = format!("{}:{number}", self.layer_arn(&owner, &name));
            if used.iter().any(|known| known.arn == arn) {
                return Err(invalid(format!("the layer {arn} is named twice")));
            }
            pins.push(self.pinned(&version.sha256).await?);
            used.push(UsedLayer {
                arn,
                sha256: version.sha256,
                zip_bytes: version.zip_bytes,
                unpacked_bytes: version.unpacked_bytes,
                bootstrap: version.bootstrap,
            });
        }
        Ok((Some(used), pins))
    }

    /// Keeps a zip file that is still there.
    async fn pinned(&self, zip: &Digest) -> Result<Pin, LambdaError> {
        let pin = self.control.inner.library.keep(zip).await;
        let opened = self.control.inner.base.images.open_code(zip).await;
        match opened.map_err(crate::error::ControlError::from)? {
            Some(_) => Ok(pin),
            None => Err(missing(&format!("the zip file {zip}"))),
        }
    }

    /// The zip file of a layer's version.
    pub(crate) async fn layer_zip(
        &self,
        call: &Call,
        owner: &str,
        name: &str,
        number: &str,
    ) -> Result<Reply, LambdaError> {
        let owner: ProjectId = owner.parse().map_err(invalid)?;
        let number = number.parse().map_err(invalid)?;
        let version = self.let_in(call, &owner, name, number).await?;
        self.zip_file(&version.sha256).await
    }

    fn owned(&self, call: &Call, owner: &ProjectId) -> Result<(), LambdaError> {
        match *owner == call.project.id {
            true => Ok(()),
            false => Err(super::not_yours()),
        }
    }

    /// The name of a layer of the caller's project, where a version has no
    /// meaning.
    fn own_layer(&self, call: &Call, text: &str) -> Result<String, LambdaError> {
        let layer = LayerRef::parse(text).map_err(invalid)?;
        if layer.version.is_some() {
            return Err(invalid("the layer is named without its version here"));
        }
        self.here(layer.region.as_deref())?;
        if let Some(account) = &layer.account {
            self.owned(call, account)?;
        }
        Ok(layer.name)
    }

    fn here(&self, region: Option<&str>) -> Result<(), LambdaError> {
        if region.is_some_and(|region| region != self.region) {
            let message = format!("the ARN is of another region: {} is served", self.region);
            return Err(LambdaError::new(Code::ResourceNotFound, message));
        }
        Ok(())
    }

    /// Whose it is, its name and its number.
    fn layer_version(
        &self,
        call: &Call,
        text: &str,
        number: Option<&str>,
    ) -> Result<(ProjectId, String, u32), LambdaError> {
        let layer = LayerRef::parse(text).map_err(invalid)?;
        self.here(layer.region.as_deref())?;
        let number = match (layer.version, number) {
            (Some(number), None) => number,
            (None, Some(number)) => number.parse().map_err(invalid)?,
            _ => {
                return Err(invalid(format!(
                    "`{text}` is not the ARN of a layer's version"
                )));
            }
        };
        let owner = layer.account.unwrap_or_else(|| call.project.id.clone());
        Ok((owner, layer.name, number))
    }

    /// A version that the caller may use.
    async fn let_in(
        &self,
        call: &Call,
        owner: &ProjectId,
        name: &str,
        number: u32,
    ) -> Result<LayerVersion, LambdaError> {
        let found = self.layer(owner, name).await?;
        let version = found.and_then(|mut found| found.record.versions.remove(&number));
        let own = *owner == call.project.id;
        let version = match (version, own) {
            (Some(version), _) => version,
            (None, true) => {
                let arn = format!("{}:{number}", self.layer_arn(owner, name));
                return Err(missing(&arn));
            }
            (None, false) => return Err(not_let_in()),
        };
        let mut statements = version
            .policy
            .iter()
            .flat_map(|policy| policy.statements.values());
        let named = |statement: &Statement| {
            statement.principal == "*" || statement.principal == call.project.id.as_str()
        };
        match own || statements.any(named) {
            true => Ok(version),
            false => Err(not_let_in()),
        }
    }

    async fn layer(
        &self,
        owner: &ProjectId,
        name: &str,
    ) -> Result<Option<Found<LayerRecord>>, LambdaError> {
        Ok(self.control.db().get(&key::layer(owner, name)).await?)
    }

    /// Changes a layer, or makes it.
    async fn change_layer<T>(
        &self,
        call: &Call,
        name: &str,
        change: impl Fn(&mut LayerRecord) -> Result<T, LambdaError>,
    ) -> Result<T, LambdaError> {
        let place = key::layer(&call.project.id, name);
        let _projects = self.control.inner.projects.read().await;
        if !self
            .control
            .db()
            .exists(&key::project(&call.project.id))
            .await?
        {
            return Err(LambdaError::new(Code::AccessDenied, "the project is gone"));
        }
        for _ in 0..TRIES {
            let found = self.layer(&call.project.id, name).await?;
            let expected = found.as_ref().map_or(0, |found| found.version);
            let mut record = found.map(|found| found.record).unwrap_or_default();
            let changed = change(&mut record)?;
            let write = Change::default()
                .expect(&place, expected)
                .put(&place, &record)?;
            if self.control.db().try_commit(write).await? {
                return Ok(changed);
            }
        }
        let message = format!("the layer {name} is being changed by others: try again");
        Err(LambdaError::new(Code::ResourceConflict, message))
    }

    async fn change_version(
        &self,
        call: &Call,
        text: &str,
        number: &str,
        change: impl Fn(&mut LayerVersion) -> Result<(), LambdaError>,
    ) -> Result<(), LambdaError> {
        let arn = self.layer_version_arn(call, text, number)?;
        let name = self.own_layer(call, text)?;
        let number: u32 = number.parse().map_err(invalid)?;
        let in_record = |record: &mut LayerRecord| {
            let version = record.versions.get_mut(&number);
            change(version.ok_or_else(|| missing(&arn))?)
        };
        self.change_layer(call, &name, in_record).await
    }

    fn layer_arn(&self, owner: &ProjectId, name: &str) -> String {
        self.arns(owner).layer(name)
    }

    fn layer_version_arn(
        &self,
        call: &Call,
        text: &str,
        number: &str,
    ) -> Result<String, LambdaError> {
        let (owner, name, number) = self.layer_version(call, text, Some(number))?;
        Ok(format!("{}:{number}", self.layer_arn(&owner, &name)))
    }

    /// `LayerVersionsListItem`.
    fn shown_version(
        &self,
        owner: &ProjectId,
        name: &str,
        number: u32,
        version: &LayerVersion,
    ) -> Value {
        let mut shown = json!({
            "LayerVersionArn": format!("{}:{number}", self.layer_arn(owner, name)),
            "Version": number,
            "Description": version.description,
            "CreatedDate": show::time(version.created_unix_ms),
            "CompatibleRuntimes": version.runtimes,
            "CompatibleArchitectures": version.architectures,
        });
        if let (Some(license), Some(fields)) = (&version.license, shown.as_object_mut()) {
            fields.insert("LicenseInfo".to_owned(), json!(license));
        }
        shown
    }

    /// `GetLayerVersionResponse`.
    fn shown_layer(
        &self,
        call: &Call,
        owner: &ProjectId,
        name: &str,
        number: u32,
        version: &LayerVersion,
    ) -> Value {
        let mut shown = self.shown_version(owner, name, number, version);
        let path = format!("/skiff/layer/{owner}/{name}/{number}");
        let content = json!({
            "Location": self.location(call, &path),
            "CodeSha256": show::sha256_base64(&version.sha256),
            "CodeSize": version.zip_bytes,
        });
        if let Some(fields) = shown.as_object_mut() {
            fields.insert("LayerArn".to_owned(), json!(self.layer_arn(owner, name)));
            fields.insert("Content".to_owned(), content);
        }
        shown
    }
}

/// Whether there is such a version is not told.
fn not_let_in() -> LambdaError {
    let message = "the layer is of another project, and no policy of its version lets this one in";
    LambdaError::new(Code::AccessDenied, message)
}

/// Whether a list that is asked for has it.
fn fits(call: &Call, version: &LayerVersion) -> bool {
    let has = |wanted: Option<&str>, all: &[String]| {
        wanted.is_none_or(|wanted| all.iter().any(|one| one == wanted))
    };
    has(call.param("CompatibleRuntime"), &version.runtimes)
        && has(call.param("CompatibleArchitecture"), &version.architectures)
}

fn check_described(wanted: &body::PublishLayerVersion) -> Result<(), LambdaError> {
    let longer = |text: &Option<String>, most| {
        text.as_ref()
            .is_some_and(|text| text.chars().count() > most)
    };
    if longer(&wanted.description, DESCRIPTION_CHARS_MAX) {
        return Err(too_long("Description", DESCRIPTION_CHARS_MAX));
    }
    if longer(&wanted.license_info, LICENSE_CHARS_MAX) {
        return Err(too_long("LicenseInfo", LICENSE_CHARS_MAX));
    }
    let runtimes = wanted.compatible_runtimes.as_deref().unwrap_or_default();
    if runtimes.len() > RUNTIMES_MAX || runtimes.iter().any(|name| name.len() > 64) {
        return Err(invalid(format!(
            "at most {RUNTIMES_MAX} runtimes are expected"
        )));
    }
    let architectures = wanted
        .compatible_architectures
        .as_deref()
        .unwrap_or_default();
    let known = ["x86_64", "arm64"];
    if architectures.len() > 2
        || !architectures
            .iter()
            .all(|one| known.contains(&one.as_str()))
    {
        return Err(invalid(
            "CompatibleArchitectures: x86_64 and arm64 are expected",
        ));
    }
    Ok(())
}
