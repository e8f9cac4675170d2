//! Where servers of S3's kind tell functions of their objects.

use http::Method;
use skiff_types::api::{CreateHook, Hook};

use super::admin::remove;
use super::args::HookCommand;
use super::{Scope, output};

/// `skiff hook …`.
pub async fn hook(scope: &Scope, command: HookCommand) -> anyhow::Result<()> {
    match command {
        HookCommand::Ls => {
            let hooks: Vec<Hook> = scope.client.get(&scope.path("hooks")).await?;
            output::show(scope.output, &hooks, |hooks| {
                let rows: Vec<_> = hooks.iter().map(row).collect();
                output::table(&["NAME", "FUNCTION", "URL", "CREATED"], &rows);
            })
        }
        HookCommand::Create {
            name,
            function,
            qualifier,
        } => {
            let body = CreateHook {
                name,
                function,
                qualifier,
            };
            let path = scope.path("hooks");
            let made: Hook = scope.client.call(Method::POST, &path, Some(&body)).await?;
            output::show(scope.output, &made, |made| {
                output::line(format!("URL={}", made.url));
                let token = made.token.as_deref().unwrap_or_default();
                output::line(format!("TOKEN={token}"));
            })
        }
        HookCommand::Rm { name } => {
            let path = scope.path(&format!("hooks/{name}"));
            remove(scope, &path, name.as_str()).await
        }
    }
}

fn row(hook: &Hook) -> Vec<String> {
    let function = match &hook.qualifier {
        Some(qualifier) => format!("{}:{qualifier}", hook.function),
        None => hook.function.to_string(),
    };
    vec![
        hook.name.to_string(),
        function,
        hook.url.clone(),
        output::time(hook.created_unix_ms),
    ]
}
