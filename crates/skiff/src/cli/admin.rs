//! Projects, secrets, access keys and tokens.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use http::Method;
use skiff_types::api::{
    AccessKey, CreateAccessKey, CreateProject, CreateToken, Project, Quota, Rekey, Rekeyed, Secret,
    SetSecret, Token,
};
use skiff_types::limits::SECRET_BYTES_MAX;

use super::args::{KeyCommand, Output, ProjectCommand, QuotaArgs, SecretCommand, TokenCommand};
use super::{Scope, output};

/// `skiff project …`.
pub async fn project(scope: &Scope, command: ProjectCommand) -> anyhow::Result<()> {
    match command {
        ProjectCommand::Ls => {
            let projects: Vec<Project> = scope.client.get("/v1/projects").await?;
            output::show(scope.output, &projects, |projects| {
                let rows: Vec<_> = projects.iter().map(project_row).collect();
                output::table(&["NAME", "ID", "MEMORY", "INSTANCES", "REQUESTS"], &rows);
            })
        }
        ProjectCommand::Create { name, quota: args } => {
            let body = CreateProject {
                name,
                quota: quota(&args),
            };
            let project: Project = scope
                .client
                .call(Method::POST, "/v1/projects", Some(&body))
                .await?;
            output::show(scope.output, &project, |project| {
                output::line(format!("{}  {}", project.name, project.id))
            })
        }
        ProjectCommand::Quota { name, quota: args } => {
            let path = format!("/v1/projects/{name}/quota");
            let project: Project = scope
                .client
                .call(Method::PUT, &path, Some(&quota(&args)))
                .await?;
            output::show(scope.output, &project, |project| {
                output::line(project_row(project).join("  "))
            })
        }
        ProjectCommand::Rm { name } => {
            remove(scope, &format!("/v1/projects/{name}"), name.as_str()).await
        }
    }
}

fn quota(args: &QuotaArgs) -> Quota {
    Quota {
        memory_mib: args.memory,
        instances: args.instances,
        requests: args.requests,
    }
}

fn project_row(project: &Project) -> Vec<String> {
    let bound =
        |value: Option<u64>| value.map_or_else(|| "–".to_owned(), |value| value.to_string());
    vec![
        project.name.to_string(),
        project.id.to_string(),
        project
            .quota
            .memory_mib
            .map_or_else(|| "–".to_owned(), |mib| format!("{mib} MiB")),
        bound(project.quota.instances.map(u64::from)),
        bound(project.quota.requests.map(u64::from)),
    ]
}

/// `skiff secret …`.
pub async fn secret(scope: &Scope, command: SecretCommand) -> anyhow::Result<()> {
    match command {
        SecretCommand::Ls => {
            let secrets: Vec<Secret> = scope.client.get(&scope.path("secrets")).await?;
            output::show(scope.output, &secrets, |secrets| {
                let row = |s: &Secret| {
                    vec![
                        s.name.to_string(),
                        output::time(s.updated_unix_ms),
                        s.key_id.clone(),
                    ]
                };
                output::table(
                    &["NAME", "UPDATED", "KEY"],
                    &secrets.iter().map(row).collect::<Vec<_>>(),
                );
            })
        }
        SecretCommand::Set { name, file } => {
            let value = read_secret(file)?;
            let value_base64 = base64::engine::general_purpose::STANDARD.encode(value);
            let path = scope.path(&format!("secrets/{name}"));
            let _answer: serde_json::Value = scope
                .client
                .call(Method::PUT, &path, Some(&SetSecret { value_base64 }))
                .await?;
            done(scope, &format!("{name} is set; new instances get it"));
            Ok(())
        }
        SecretCommand::Rm { name } => {
            remove(
                scope,
                &scope.path(&format!("secrets/{name}")),
                name.as_str(),
            )
            .await
        }
        SecretCommand::Rekey { key_file } => {
            let named = key_file.as_ref().map(|path| path.display().to_string());
            let body = Rekey {
                key_file: named.clone(),
            };
            let answer: Rekeyed = scope
                .client
                .call(Method::POST, "/v1/secrets/rekey", Some(&body))
                .await?;
            output::show(scope.output, &answer, |answer| {
                output::line(format!(
                    "{} secrets are encrypted with the key {}",
                    answer.secrets, answer.key_id
                ));
                if let Some(path) = named {
                    output::line(format!(
                        "set secrets.key_file to {path} before the next start"
                    ));
                }
            })
        }
    }
}

fn read_secret(file: Option<PathBuf>) -> anyhow::Result<Vec<u8>> {
    let limit = u64::try_from(SECRET_BYTES_MAX)? + 1;
    let mut value = Vec::new();
    match &file {
        Some(path) => std::fs::File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut value))
            .with_context(|| format!("{} cannot be read", path.display()))?,
        None => std::io::stdin()
            .take(limit)
            .read_to_end(&mut value)
            .context("standard input cannot be read")?,
    };
    if value.len() > SECRET_BYTES_MAX {
        bail!("the value is over the limit of {SECRET_BYTES_MAX} bytes");
    }
    Ok(value)
}

/// `skiff key …`.
pub async fn key(scope: &Scope, command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Ls => {
            let keys: Vec<AccessKey> = scope.client.get(&scope.path("keys")).await?;
            output::show(scope.output, &keys, |keys| {
                let row = |k: &AccessKey| {
                    vec![
                        k.id.clone(),
                        k.name.clone(),
                        output::time(k.created_unix_ms),
                    ]
                };
                output::table(
                    &["ID", "NAME", "CREATED"],
                    &keys.iter().map(row).collect::<Vec<_>>(),
                );
            })
        }
        KeyCommand::Create { name } => {
            let path = scope.path("keys");
            let key: AccessKey = scope
                .client
                .call(Method::POST, &path, Some(&CreateAccessKey { name }))
                .await?;
            output::show(scope.output, &key, |key| {
                output::line(format!("AWS_ACCESS_KEY_ID={}", key.id));
                let secret = key.secret.as_deref().unwrap_or_default();
                output::line(format!("AWS_SECRET_ACCESS_KEY={secret}"));
            })
        }
        KeyCommand::Rm { id } => {
            let path = scope.path(&format!("keys/{}", super::segment(&id)));
            remove(scope, &path, &id).await
        }
    }
}

/// `skiff token …`.
pub async fn token(scope: &Scope, command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Ls => {
            let tokens: Vec<Token> = scope.client.get("/v1/tokens").await?;
            output::show(scope.output, &tokens, |tokens| {
                let bound = |t: &Token| {
                    t.project
                        .as_ref()
                        .map_or_else(|| "operator".to_owned(), ToString::to_string)
                };
                let row = |t: &Token| {
                    vec![
                        t.id.clone(),
                        t.name.clone(),
                        bound(t),
                        output::time(t.created_unix_ms),
                    ]
                };
                output::table(
                    &["ID", "NAME", "FOR", "CREATED"],
                    &tokens.iter().map(row).collect::<Vec<_>>(),
                );
            })
        }
        TokenCommand::Create { name, operator } => {
            let project = if operator {
                None
            } else {
                Some(scope.project.parse()?)
            };
            let token: Token = scope
                .client
                .call(
                    Method::POST,
                    "/v1/tokens",
                    Some(&CreateToken { name, project }),
                )
                .await?;
            output::show(scope.output, &token, |token| {
                output::line(token.token.as_deref().unwrap_or_default());
            })
        }
        TokenCommand::Rm { id } => {
            remove(scope, &format!("/v1/tokens/{}", super::segment(&id)), &id).await
        }
    }
}

pub(super) async fn remove(scope: &Scope, path: &str, name: &str) -> anyhow::Result<()> {
    let _null: serde_json::Value = scope.client.call(Method::DELETE, path, None::<&()>).await?;
    done(scope, &format!("{name} is removed"));
    Ok(())
}

fn done(scope: &Scope, text: &str) {
    if scope.output == Output::Text {
        output::note(text);
    }
}
