//! What functions' roles give them, read once when the server starts.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use skiff_config::Role;

/// The variables of each role.
pub fn of(
    config: &BTreeMap<String, Role>,
) -> anyhow::Result<BTreeMap<String, skiff_control::Role>> {
    let read = |(arn, role): (&String, &Role)| {
        let variables = variables(role);
        let variables = variables.with_context(|| format!("roles.{arn:?}"))?;
        Ok((arn.clone(), skiff_control::Role(variables)))
    };
    config.iter().map(read).collect()
}

fn variables(role: &Role) -> anyhow::Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    let mut set = |name: &str, value: String| variables.push((name.to_owned(), value));
    if let Some(id) = &role.access_key_id {
        set("AWS_ACCESS_KEY_ID", id.clone());
    }
    if let Some(path) = &role.secret_access_key_file {
        set("AWS_SECRET_ACCESS_KEY", secret(path)?);
    }
    if let Some(path) = &role.session_token_file {
        set("AWS_SESSION_TOKEN", secret(path)?);
    }
    for (service, url) in &role.endpoints {
        match service.as_str() {
            "all" => set("AWS_ENDPOINT_URL", url.clone()),
            service => {
                let name = format!("AWS_ENDPOINT_URL_{}", service.to_uppercase());
                set(&name, url.clone());
            }
        }
    }
    Ok(variables)
}

/// What a file holds, without the end of its line.
pub fn secret(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("{} cannot be read", path.display()))?;
    let text = text.trim().to_owned();
    anyhow::ensure!(!text.is_empty(), "{} is empty", path.display());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_becomes_variables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "hidden\n").unwrap();
        let endpoints = [
            ("all", "https://aws.example"),
            ("secrets_manager", "http://sm"),
        ];
        let role = Role {
            access_key_id: Some("AKIA".to_owned()),
            secret_access_key_file: Some(path.clone()),
            session_token_file: None,
            endpoints: endpoints
                .map(|(name, url)| (name.to_owned(), url.to_owned()))
                .into(),
        };
        let arn = "arn:aws:iam::000000000001:role/app".to_owned();
        let made = of(&BTreeMap::from([(arn.clone(), role.clone())])).unwrap();
        let expected = [
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "hidden"),
            ("AWS_ENDPOINT_URL", "https://aws.example"),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://sm"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(made[&arn].0, expected);
        assert!(!format!("{made:?}").contains("hidden"));
        std::fs::write(&path, "\n").unwrap();
        let error = of(&BTreeMap::from([(arn, role)])).unwrap_err();
        assert!(format!("{error:#}").contains("is empty"), "{error:#}");
    }
}
