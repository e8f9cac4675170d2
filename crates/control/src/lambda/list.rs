//! All versions of all functions, in pages.

use std::iter::once;

use skiff_lambda::{Code, LambdaError, Qualifier};
use skiff_types::ServiceName;

use super::call::{Call, Reply, invalid};
use super::functions::PAGE_MAX;
use super::record::FunctionRecord;
use super::{Front, show};
use crate::key;

/// What a page ended with: a function's service, and a version of it or 0 for
/// `$LATEST`.
#[derive(Debug, PartialEq, Eq)]
struct Marker {
    service: ServiceName,
    version: u32,
}

impl Marker {
    fn parse(text: &str) -> Result<Self, LambdaError> {
        let read = text.split_once(':').and_then(|(service, version)| {
            let (service, version) = (service.parse().ok()?, version.parse().ok()?);
            Some(Self { service, version })
        });
        read.ok_or_else(|| invalid("Marker is not what a page ended with"))
    }
}

/// `$LATEST` and the versions of a service's function that a page has not had.
fn left(service: &ServiceName, record: &FunctionRecord, marker: Option<&Marker>) -> Vec<Qualifier> {
    let had = marker.filter(|marker| marker.service == *service);
    let is_left = |version: &u32| had.is_none_or(|marker| *version > marker.version);
    let all = once(0).chain(record.versions.keys().copied());
    let qualifiers = all.filter(is_left).map(|version| match version {
        0 => Qualifier::Latest,
        version => Qualifier::Version(version),
    });
    qualifiers.collect()
}

impl Front {
    /// `ListFunctions` with `FunctionVersion`.
    pub(crate) async fn list_all_versions(&self, call: &Call) -> Result<Reply, LambdaError> {
        if call.param("FunctionVersion") != Some("ALL") {
            return Err(invalid("FunctionVersion is ALL"));
        }
        let (limit, project) = (call.page(PAGE_MAX)?, &call.project.id);
        let marker = call.param("Marker").map(Marker::parse).transpose()?;
        let after = marker.as_ref();
        let after = after.map(|marker| key::function(project, &marker.service));
        let db = self.control.db();
        let mut functions = match &after {
            Some(place) => Vec::from_iter(db.get::<FunctionRecord>(place).await?),
            None => Vec::new(),
        };
        let prefix = key::functions(project);
        // Each of them has `$LATEST` at least.
        let others = db.first(&prefix, after.as_deref(), limit + 1).await?;
        let are_more = others.len() > limit;
        functions.extend(others);
        let arns = self.arns(project);
        let (mut shown, mut last) = (Vec::new(), None);
        for found in &functions {
            let service: ServiceName = key::last_part(&found.key).parse().map_err(invalid)?;
            let name = found.record.name_of(&service);
            for asked in left(&service, &found.record, marker.as_ref()) {
                if shown.len() == limit {
                    return Ok(Reply::page("Functions", shown, last));
                }
                let number = match asked {
                    Qualifier::Version(number) => number,
                    _ => 0,
                };
                last = Some(format!("{service}:{number}"));
                let asked = Some(&asked);
                match self.version(call, &name, &found.record, asked).await {
                    Ok((version, config)) => {
                        let told = show::configuration(&arns, &name, asked, &version, &config);
                        shown.push(told);
                    }
                    // It was deleted at this moment.
                    Err(error) if error.code == Code::ResourceNotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Reply::page("Functions", shown, last.filter(|_| are_more)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lambda::record::Version;
    use crate::lambda::record::tests::bare;

    #[test]
    fn a_page_goes_on_behind_its_marker() {
        let service: ServiceName = "hello".parse().unwrap();
        let mut record = bare();
        for version in [1, 3] {
            let kept = Version {
                revision: 1,
                timeout_s: 3,
                role: String::new(),
                latest_description: None,
            };
            record.versions.insert(version, kept);
        }
        for (marker, expected) in [
            (None, "$LATEST 1 3"),
            (Some("hello:0"), "1 3"),
            (Some("hello:2"), "3"),
            (Some("hello:3"), ""),
            (Some("a:7"), "$LATEST 1 3"),
        ] {
            let read = marker.map(|text| Marker::parse(text).unwrap());
            let left = left(&service, &record, read.as_ref());
            let left: Vec<String> = left.iter().map(Qualifier::to_string).collect();
            assert_eq!(left.join(" "), expected, "{marker:?}");
        }
        for wrong in ["", "hello", "hello:x", "Hello:1", "hello:1:2"] {
            assert!(Marker::parse(wrong).is_err(), "{wrong}");
        }
    }
}
