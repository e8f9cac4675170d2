//! Which host, or which name inside a project, leads to which revisions.

use std::sync::Arc;
use std::sync::{Mutex, OnceLock};

use skiff_types::{ProjectId, RevisionId, ServiceName};

use crate::aside::Kept;
use crate::port::ServiceRoute;
use crate::revision::{Revision, lock};
use crate::shards::Shards;
use crate::shared::ServiceTotals;

/// What stands between a tag and the host it belongs to.
const TAG_SEPARATOR: &str = "---";
/// The domain of a project's services as its instances see it.
pub(crate) const INNER_DOMAIN: &str = ".skiff.internal";

#[derive(Debug, Default)]
pub(crate) struct Table {
    hosts: Shards<Arc<str>, Arc<Target>>,
    /// `PROJECT/NAME` and `PROJECT/TAG---NAME`.
    inner: Shards<Arc<str>, Arc<Target>>,
    services: Shards<(ProjectId, ServiceName), Arc<Listing>>,
    totals: Shards<(ProjectId, ServiceName), Arc<ServiceTotals>>,
    pub(crate) revisions: Shards<RevisionId, Arc<Revision>>,
    pub(crate) aside: OnceLock<Kept>,
}

/// The keys under which one service stands in the maps.
#[derive(Debug, Default)]
struct Listing(Mutex<Keys>);

/// Few: lists take the least memory.
#[derive(Debug, Default)]
struct Keys {
    hosts: Vec<Arc<str>>,
    inner: Vec<Arc<str>>,
}

/// Where the requests of one host go.
#[derive(Debug)]
pub(crate) struct Target {
    owner: (ProjectId, ServiceName),
    /// With the sum of the shares up to and including each.
    shares: Vec<(Arc<Revision>, u32)>,
}

/// A route names a revision that was never put.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the route of {service} names {revision}, which the gateway does not know")]
pub struct RouteError {
    /// The service.
    pub service: ServiceName,
    /// The revision.
    pub revision: RevisionId,
}

impl Target {
    /// A revision by the shares; `None` when nothing has a share.
    pub(crate) fn pick(&self, random: u64) -> Option<&Arc<Revision>> {
        if let [(only, share)] = self.shares.as_slice() {
            return (*share > 0).then_some(only);
        }
        let (_, sum) = self.shares.last()?;
        if *sum == 0 {
            return None;
        }
        let point = u32::try_from(random % u64::from(*sum)).unwrap_or(0);
        let found = self.shares.iter().find(|(_, upto)| point < *upto)?;
        Some(&found.0)
    }
}

impl Table {
    pub(crate) fn host(&self, host: &str) -> Option<Arc<Target>> {
        self.hosts.get(host)
    }

    /// `host` is `NAME.skiff.internal`, or not a name inside.
    pub(crate) fn inside(&self, project: &ProjectId, host: &str) -> Option<Arc<Target>> {
        let name = host.strip_suffix(INNER_DOMAIN)?;
        self.inner.get(format!("{project}/{name}").as_str())
    }

    pub(crate) fn totals(&self, project: &ProjectId, service: &ServiceName) -> Arc<ServiceTotals> {
        let key = (project.clone(), service.clone());
        self.totals.get_or_insert(key, Arc::default)
    }

    pub(crate) fn all_totals(&self) -> Vec<((ProjectId, ServiceName), Arc<ServiceTotals>)> {
        self.totals.all()
    }

    /// Sets a service's routes; what it answered to before and no more is gone.
    pub(crate) fn put(&self, route: &ServiceRoute) -> Result<(), RouteError> {
        let owner = (route.project.clone(), route.service.clone());
        let main = Arc::new(self.target(route, route.traffic.iter().cloned())?);
        let mut tagged = Vec::with_capacity(route.tags.len());
        for (tag, revision) in &route.tags {
            let only = std::iter::once((revision.clone(), 100));
            tagged.push((tag, Arc::new(self.target(route, only)?)));
        }
        let listing = self
            .services
            .get_or_insert(owner.clone(), Arc::<Listing>::default);
        let mut keys = lock(&listing.0);
        let old = std::mem::take(&mut *keys);
        for host in &route.hosts {
            keys.put_host(self, host.as_str().into(), &main);
            for (tag, target) in &tagged {
                keys.put_host(self, format!("{tag}{TAG_SEPARATOR}{host}").into(), target);
            }
        }
        let name = format!("{}/{}", route.project, route.service);
        keys.put_inner(self, name.into(), &main);
        for (tag, target) in &tagged {
            let name = format!("{}/{tag}{TAG_SEPARATOR}{}", route.project, route.service);
            keys.put_inner(self, name.into(), target);
        }
        keys.hosts.shrink_to_fit();
        keys.inner.shrink_to_fit();
        let gone = |key: &&Arc<str>| !keys.hosts.contains(key);
        self.unlist(&owner, old.hosts.iter().filter(gone), &self.hosts);
        let gone = |key: &&Arc<str>| !keys.inner.contains(key);
        self.unlist(&owner, old.inner.iter().filter(gone), &self.inner);
        Ok(())
    }

    pub(crate) fn remove(&self, project: &ProjectId, service: &ServiceName) {
        let owner = (project.clone(), service.clone());
        let Some(listing) = self.services.remove(&owner) else {
            return;
        };
        let keys = lock(&listing.0);
        self.unlist(&owner, keys.hosts.iter(), &self.hosts);
        self.unlist(&owner, keys.inner.iter(), &self.inner);
    }

    fn unlist<'a>(
        &self,
        owner: &(ProjectId, ServiceName),
        keys: impl Iterator<Item = &'a Arc<str>>,
        map: &Shards<Arc<str>, Arc<Target>>,
    ) {
        for key in keys {
            map.remove_if(&**key, |target| target.owner == *owner);
        }
    }

    fn target(
        &self,
        route: &ServiceRoute,
        shares: impl Iterator<Item = (RevisionId, u8)>,
    ) -> Result<Target, RouteError> {
        let mut sum = 0;
        let shares = shares.map(|(id, share)| {
            let revision = self.revisions.get(&id).ok_or_else(|| RouteError {
                service: route.service.clone(),
                revision: id,
            })?;
            sum += u32::from(share);
            Ok((revision, sum))
        });
        Ok(Target {
            owner: (route.project.clone(), route.service.clone()),
            shares: shares.collect::<Result<_, _>>()?,
        })
    }
}

impl Keys {
    fn put_host(&mut self, table: &Table, host: Arc<str>, target: &Arc<Target>) {
        table.hosts.insert(host.clone(), target.clone());
        self.hosts.push(host);
    }

    fn put_inner(&mut self, table: &Table, name: Arc<str>, target: &Arc<Target>) {
        table.inner.insert(name.clone(), target.clone());
        self.inner.push(name);
    }
}
