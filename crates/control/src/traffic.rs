//! Who gets which share of a service's requests: pure rules over
//! [`ServiceRecord`].

use std::collections::{BTreeMap, BTreeSet, HashSet};

use skiff_types::api::TrafficTarget;
use skiff_types::{ProjectId, RevisionId, ServiceName, Tag};

use crate::error::{ControlError, conflict, invalid};
use crate::limit::TARGETS_MAX;
use crate::record::{ServiceRecord, Target};

const LATEST: &str = "latest";

impl ServiceRecord {
    fn number_of(&self, target: &Target) -> Option<u32> {
        target.revision.or(self.latest_ready)
    }

    /// Each revision with its whole share.
    pub(crate) fn shares(&self) -> BTreeMap<u32, u8> {
        let mut shares = BTreeMap::new();
        for target in self.targets.iter().filter(|target| target.percent > 0) {
            if let Some(number) = self.number_of(target) {
                *shares.entry(number).or_insert(0) += target.percent;
            }
        }
        shares
    }

    /// The revisions that have a host of their own.
    pub(crate) fn tags(&self) -> BTreeMap<Tag, u32> {
        let tagged = |t: &Target| Some((t.tag.clone()?, self.number_of(t)?));
        self.targets.iter().filter_map(tagged).collect()
    }

    /// Every revision that a request or an event can reach.
    pub(crate) fn routed(&self) -> BTreeSet<u32> {
        let tagged = self.tags().into_values();
        let kept = self.kept.iter().copied();
        self.shares()
            .into_keys()
            .chain(tagged)
            .chain(kept)
            .collect()
    }

    /// The newest revision with a share.
    pub(crate) fn serving(&self) -> Option<u32> {
        self.shares().into_keys().next_back()
    }

    /// After `number` was validated: it gets all requests unless they stay
    /// where they are; tags stay, but for the one it takes.
    pub(crate) fn after_deploy(&self, number: u32, tag: Option<Tag>, stay: bool) -> Self {
        let mut targets = if stay {
            self.pinned()
        } else {
            vec![Target {
                revision: None,
                percent: 100,
                tag: None,
            }]
        };
        if !stay {
            let tagged = self.targets.iter().filter(|target| target.tag.is_some());
            targets.extend(tagged.map(|target| Target {
                revision: self.number_of(target),
                percent: 0,
                tag: target.tag.clone(),
            }));
        }
        if let Some(tag) = tag {
            take_tag(&mut targets, &tag);
            targets.push(Target {
                revision: Some(number),
                percent: 0,
                tag: Some(tag),
            });
        }
        Self {
            created_unix_ms: self.created_unix_ms,
            latest_ready: Some(number.max(self.latest_ready.unwrap_or(0))),
            targets,
            kept: self.kept.clone(),
        }
    }

    /// All requests to one revision; tags stay where they are.
    pub(crate) fn all_to(&self, number: u32) -> Self {
        let mut record = self.after_deploy(number, None, false);
        record.latest_ready = self.latest_ready;
        record.targets[0].revision = Some(number);
        record
    }

    /// The targets, with none that would follow the latest, and no revision
    /// with two shares.
    fn pinned(&self) -> Vec<Target> {
        let mut pinned: Vec<Target> = Vec::new();
        for target in &self.targets {
            let mut target = Target {
                revision: self.number_of(target),
                ..target.clone()
            };
            let same = |other: &&mut Target| other.percent > 0 && other.revision == target.revision;
            if target.percent > 0
                && let Some(first) = pinned.iter_mut().find(same)
            {
                first.percent += target.percent;
                target.percent = 0;
            }
            if target.percent > 0 || target.tag.is_some() {
                pinned.push(target);
            }
        }
        pinned
    }

    /// As the API tells it.
    pub(crate) fn to_api(&self, project: &ProjectId, service: &ServiceName) -> Vec<TrafficTarget> {
        let name = |number: u32| revision_id(project, service, number).name();
        let tell = |target: &Target| TrafficTarget {
            revision: target.revision.map_or_else(|| LATEST.to_owned(), name),
            percent: target.percent,
            tag: target.tag.clone(),
        };
        self.targets.iter().map(tell).collect()
    }
}

/// Takes a tag away from whoever has it.
fn take_tag(targets: &mut Vec<Target>, tag: &Tag) {
    for target in targets.iter_mut() {
        if target.tag.as_ref() == Some(tag) {
            target.tag = None;
        }
    }
    targets.retain(|target| target.percent > 0 || target.tag.is_some());
}

/// The targets that a user asks for; whether each revision is ready is the
/// caller's to check.
pub(crate) fn from_api(
    project: &ProjectId,
    service: &ServiceName,
    wanted: &[TrafficTarget],
) -> Result<Vec<Target>, ControlError> {
    if wanted.len() > TARGETS_MAX {
        return Err(invalid(format!(
            "there are {} targets: at most {TARGETS_MAX} are expected",
            wanted.len()
        )));
    }
    let sum: u32 = wanted.iter().map(|target| u32::from(target.percent)).sum();
    if sum != 100 {
        return Err(invalid(format!(
            "the percentages sum to {sum}: 100 is expected"
        )));
    }
    let mut tags = HashSet::new();
    for target in wanted {
        if let Some(tag) = &target.tag
            && !tags.insert(tag)
        {
            return Err(invalid(format!("the tag {tag} is given twice")));
        }
        if target.percent == 0 && target.tag.is_none() {
            return Err(invalid(format!(
                "{} has neither requests nor a tag: leave it out",
                target.revision
            )));
        }
    }
    let mut served = HashSet::new();
    for target in wanted.iter().filter(|target| target.percent > 0) {
        if !served.insert(target.revision.as_str()) {
            return Err(invalid(format!(
                "{} is given requests twice: sum its shares up",
                target.revision
            )));
        }
    }
    let parse = |target: &TrafficTarget| {
        Ok(Target {
            revision: parse_revision(project, service, &target.revision)?,
            percent: target.percent,
            tag: target.tag.clone(),
        })
    };
    wanted.iter().map(parse).collect()
}

/// Reads `latest`, or a revision of this service.
fn parse_revision(
    project: &ProjectId,
    service: &ServiceName,
    text: &str,
) -> Result<Option<u32>, ControlError> {
    if text == LATEST {
        return Ok(None);
    }
    revision_number(project, service, text).map(Some)
}

/// Reads `hello-00003` of the service `hello`.
pub(crate) fn revision_number(
    project: &ProjectId,
    service: &ServiceName,
    text: &str,
) -> Result<u32, ControlError> {
    let id = RevisionId::parse(project, text).map_err(|e| invalid(e.to_string()))?;
    if id.service != *service {
        return Err(invalid(format!("{text} is not a revision of {service}")));
    }
    Ok(id.number)
}

pub(crate) fn revision_id(project: &ProjectId, service: &ServiceName, number: u32) -> RevisionId {
    RevisionId {
        project: project.clone(),
        service: service.clone(),
        number,
    }
}

/// Where a rollback goes: the newest ready revision before what serves.
pub(crate) fn before(serving: Option<u32>, ready: &[u32]) -> Result<u32, ControlError> {
    let serving =
        serving.ok_or_else(|| conflict("nothing serves yet: there is nothing to roll back"))?;
    ready
        .iter()
        .copied()
        .filter(|number| *number < serving)
        .max()
        .ok_or_else(|| conflict("no ready revision is older than what serves now"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(revision: Option<u32>, percent: u8, tag: Option<&str>) -> Target {
        Target {
            revision,
            percent,
            tag: tag.map(|tag| tag.parse().unwrap()),
        }
    }

    fn service(latest: Option<u32>, targets: Vec<Target>) -> ServiceRecord {
        ServiceRecord {
            created_unix_ms: 0,
            latest_ready: latest,
            targets,
            kept: BTreeSet::new(),
        }
    }

    #[test]
    fn a_deployment_gets_everything_and_tags_stay_on_their_revision() {
        let old = service(
            Some(2),
            vec![
                target(Some(1), 90, Some("stable")),
                target(None, 10, Some("next")),
            ],
        );
        let new = old.after_deploy(3, Some("canary".parse().unwrap()), false);
        assert_eq!(new.shares(), BTreeMap::from([(3, 100)]));
        let tags = ["stable", "next", "canary"].map(|t| t.parse().unwrap());
        let expected: BTreeMap<_, _> = tags.into_iter().zip([1, 2, 3]).collect();
        assert_eq!(new.tags(), expected);
    }

    #[test]
    fn without_traffic_the_latest_is_pinned_and_only_a_tag_leads_to_the_new_one() {
        let old = service(Some(2), vec![target(None, 100, Some("a"))]);
        let new = old.after_deploy(3, Some("a".parse().unwrap()), true);
        assert_eq!(new.shares(), BTreeMap::from([(2, 100)]));
        assert_eq!(new.tags(), BTreeMap::from([("a".parse().unwrap(), 3)]));
        assert_eq!(new.latest_ready, Some(3));
    }

    #[test]
    fn what_follows_the_latest_is_pinned_to_one_share() {
        let old = service(
            Some(2),
            vec![
                target(Some(2), 60, Some("a")),
                target(None, 30, Some("b")),
                target(Some(1), 10, None),
            ],
        );
        let new = old.after_deploy(3, None, true);
        let expected = vec![
            target(Some(2), 90, Some("a")),
            target(Some(2), 0, Some("b")),
            target(Some(1), 10, None),
        ];
        assert_eq!(new.targets, expected);
    }

    #[test]
    fn a_rollback_pins_and_keeps_the_latest() {
        let old = service(Some(3), vec![target(None, 100, None)]);
        let new = old.all_to(1);
        assert_eq!(new.shares(), BTreeMap::from([(1, 100)]));
        assert_eq!(new.latest_ready, Some(3));
        assert_eq!(before(Some(3), &[1, 2, 3]).unwrap(), 2);
        assert!(before(Some(1), &[1, 3]).is_err());
        assert!(before(None, &[]).is_err());
    }

    #[test]
    fn bad_traffic_is_refused_with_its_reason() {
        let project = ProjectId::default_project();
        let hello: ServiceName = "hello".parse().unwrap();
        let want = |revision: &str, percent, tag: Option<&str>| TrafficTarget {
            revision: revision.into(),
            percent,
            tag: tag.map(|tag| tag.parse().unwrap()),
        };
        let check = |wanted: &[TrafficTarget], reason: &str| {
            let error = from_api(&project, &hello, wanted).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        };
        check(&[], "sum to 0");
        check(&[want("latest", 255, None)], "sum to 255");
        check(
            &[want("latest", 50, None), want("hello-00001", 49, None)],
            "sum to 99",
        );
        check(&[want("other-00001", 100, None)], "not a revision of hello");
        check(&[want("nonsense", 100, None)], "not a revision name");
        check(
            &[
                want("latest", 100, Some("a")),
                want("hello-00001", 0, Some("a")),
            ],
            "given twice",
        );
        for twice in ["hello-00001", "latest"] {
            check(
                &[want(twice, 50, None), want(twice, 50, Some("a"))],
                &format!("{twice} is given requests twice"),
            );
        }
        let tagged = [
            want("hello-00001", 100, Some("a")),
            want("hello-00001", 0, Some("b")),
        ];
        assert!(from_api(&project, &hello, &tagged).is_ok(), "two hosts");
        check(
            &[want("latest", 100, None), want("hello-00001", 0, None)],
            "neither",
        );
        let many = vec![want("latest", 1, None); 100];
        check(&many, "at most 32");
    }
}
