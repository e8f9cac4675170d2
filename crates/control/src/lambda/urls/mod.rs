//! Functions' URLs: HTTP requests of anyone, as events of a function.
//!
//! ```text
//!  request ─ URL known? ─ preflight? ─ let in? ─ body ─ event ─▶ invocation ─▶ reply
//!               403          200         403     413    413      429, 502
//! ```
//! A URL belongs to a function or to an alias of it; its id is never given
//! again. Requests find it by the host, or by the path below [`URL_PATH`].

mod cors;
mod serve;

use http::StatusCode;
use skiff_lambda::{Code, FunctionRef, LambdaError, Qualifier};

use super::call::{Call, Reply, body as parse, invalid};
use super::record::{FunctionRecord, InvokeMode, UrlConfig};
use super::{Front, body, show};

pub(crate) use serve::{Denied, UrlPlace, from_gateway};

/// Where URLs are for who cannot look their hosts up: the id and the request's
/// own path follow.
pub const URL_PATH: &str = "/skiff/url/";
/// What stands behind the id in a URL's host.
pub const URL_HOST: &str = "lambda-url";
const ID_CHARS: usize = 32;
const ID_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// As AWS, whatever is asked for.
const PAGE_MAX: usize = 50;
const LATEST: &str = "$LATEST";

fn missing() -> LambdaError {
    let message = "The resource you requested does not exist.";
    LambdaError::new(Code::ResourceNotFound, message)
}

fn new_id() -> String {
    let mut bytes = [0; ID_CHARS];
    skiff_base::random::fill(&mut bytes);
    let char_of = |byte: &u8| char::from(ID_ALPHABET[usize::from(byte & 31)]);
    bytes.iter().map(char_of).collect()
}

/// What names a URL's place; the function itself has none.
fn qualifier(alias: &str) -> Option<Qualifier> {
    (!alias.is_empty()).then(|| Qualifier::Alias(alias.to_owned()))
}

/// How lists name a URL's place; they are in this order.
fn listed(alias: &str) -> &str {
    if alias.is_empty() { LATEST } else { alias }
}

impl Front {
    pub(crate) async fn create_url(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let wanted: body::CreateFunctionUrlConfig = parse(call)?;
        let (target, alias) = self.url_target(call, text)?;
        let arn = self.arn(call, &target);
        let config = UrlConfig {
            id: new_id(),
            auth: wanted.auth_type,
            mode: wanted.invoke_mode.unwrap_or(InvokeMode::Buffered),
            cors: cors::checked(wanted.cors)?,
            created_unix_ms: call.now_ms,
            modified_unix_ms: call.now_ms,
        };
        let change = |record: &mut FunctionRecord| {
            if !alias.is_empty() && !record.aliases.contains_key(&alias) {
                return Err(missing());
            }
            if record.urls.contains_key(&alias) {
                let message = format!(
                    "Failed to create function url config for [functionArn = {arn}]. Error message: FunctionUrlConfig exists for this Lambda function"
                );
                return Err(LambdaError::new(Code::ResourceConflict, message));
            }
            record.urls.insert(alias.clone(), config.clone());
            Ok(())
        };
        self.change(call, &target.name, change).await?;
        let shown = show::url_config(&arn, &self.url(&config.id), &config, true);
        Ok(Reply::json(StatusCode::CREATED, shown))
    }

    pub(crate) async fn update_url(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let wanted: body::UpdateFunctionUrlConfig = parse(call)?;
        let (target, alias) = self.url_target(call, text)?;
        let sets_cors = wanted.cors.is_some();
        let cors = cors::checked(wanted.cors)?;
        let change = |record: &mut FunctionRecord| {
            let config = record.urls.get_mut(&alias).ok_or_else(missing)?;
            config.auth = wanted.auth_type.unwrap_or(config.auth);
            config.mode = wanted.invoke_mode.unwrap_or(config.mode);
            if sets_cors {
                config.cors.clone_from(&cors);
            }
            config.modified_unix_ms = call.now_ms;
            Ok(config.clone())
        };
        let (config, _) = self.change(call, &target.name, change).await?;
        Ok(self.shown_url(call, &target, &config))
    }

    pub(crate) async fn get_url(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let (target, alias) = self.url_target(call, text)?;
        let record = self.record(call, &target.name).await?;
        let config = record.urls.get(&alias).ok_or_else(missing)?;
        Ok(self.shown_url(call, &target, config))
    }

    pub(crate) async fn delete_url(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let (target, alias) = self.url_target(call, text)?;
        let change = |record: &mut FunctionRecord| {
            let removed = record.urls.remove(&alias);
            removed.map(drop).ok_or_else(missing)
        };
        self.change(call, &target.name, change).await?;
        Ok(Reply::empty())
    }

    pub(crate) async fn list_urls(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let name = self.unqualified(call, text)?;
        let limit = call.page(PAGE_MAX)?;
        let record = self.record(call, &name).await?;
        let arns = self.arns(&call.project.id);
        let configs = record.urls.iter();
        let configs = configs.map(|(alias, config)| (listed(alias), (alias, config)));
        let field = "FunctionUrlConfigs";
        Reply::listed(call, limit, field, configs, |_, (alias, config)| {
            let arn = arns.named(&name, qualifier(alias).as_ref());
            let url = self.url(&config.id);
            Ok(show::url_config(&arn, &url, config, false))
        })
    }

    fn shown_url(&self, call: &Call, target: &FunctionRef, config: &UrlConfig) -> Reply {
        let arn = self.arn(call, target);
        let shown = show::url_config(&arn, &self.url(&config.id), config, false);
        Reply::json(StatusCode::OK, shown)
    }

    /// The function, and the alias that a URL is for; empty is the function.
    fn url_target(&self, call: &Call, text: &str) -> Result<(FunctionRef, String), LambdaError> {
        let target = self.target(call, text)?;
        let alias = match &target.qualifier {
            None => String::new(),
            Some(Qualifier::Alias(alias)) => alias.clone(),
            Some(Qualifier::Latest | Qualifier::Version(_)) => {
                return Err(invalid(
                    "a URL is for a function or for an alias: a version and $LATEST have none",
                ));
            }
        };
        Ok((target, alias))
    }

    fn url_host(&self, id: &str) -> String {
        let domain = &self.control.inner.base.config.domain;
        format!("{id}.{URL_HOST}.{}.{domain}", self.region)
    }

    /// At the gateway, which anyone may reach.
    fn url(&self, id: &str) -> String {
        let config = &self.control.inner.base.config;
        let (scheme, host) = (&config.url_scheme, self.url_host(id));
        match config.url_port {
            Some(port) => format!("{scheme}://{host}:{port}/"),
            None => format!("{scheme}://{host}/"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_host_label_and_never_the_same() {
        let id = new_id();
        assert!(id.len() == ID_CHARS && id.bytes().all(|b| ID_ALPHABET.contains(&b)));
        assert_ne!(id, new_id());
    }

    #[test]
    fn the_functions_own_url_is_listed_first() {
        let mut aliases = ["Live", "-a", "", "1b", "_x"].map(listed);
        aliases.sort_unstable();
        assert_eq!(aliases[0], LATEST);
    }
}
