//! The ledger, as the control plane asks for bills.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use skiff_base::{Clock, chain};
use skiff_config::Meter as MeterConfig;
use skiff_control::Resolver;
use skiff_control::port::{PortError, Traces, UsageQuery, UsageSource};
use skiff_gateway::Gateway;
use skiff_meter::{Entry, Fold, GatewayCounts, InstanceEnd, Ledger, LedgerWriter, Prices, Sources};
use skiff_types::api::{ColdStart, Usage, UsageCheck, UsageCheckRow};
use skiff_types::{ErrorKind, InstanceId, ProjectId, ProjectName, ServiceName};

use super::records::ServerRecords;

const BYTES_PER_GIB: f64 = 1_073_741_824.0;

/// Bills, checks and traces of this worker.
#[derive(Debug)]
pub struct Meter {
    folder: PathBuf,
    writer: Arc<LedgerWriter>,
    records: Arc<ServerRecords>,
    gateway: Arc<Gateway>,
    resolver: Resolver,
    prices: Prices,
    clock: Arc<dyn Clock>,
    fold: Arc<Mutex<Fold>>,
}

impl Meter {
    pub fn new(
        folder: &Path,
        writer: Arc<LedgerWriter>,
        records: Arc<ServerRecords>,
        gateway: Arc<Gateway>,
        resolver: Resolver,
        config: &MeterConfig,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let fold = Fold::load(&sums(folder))?;
        let prices = &config.prices;
        let prices = Prices {
            currency: config.currency.clone(),
            per_million_requests: prices.million_requests,
            per_gib_second: prices.gib_hour / 3600.0,
            per_cpu_second: prices.cpu_hour / 3600.0,
            per_gb_out: prices.gib_out * 1e9 / BYTES_PER_GIB,
        };
        let folder = folder.to_owned();
        Ok(Self {
            folder,
            writer,
            records,
            gateway,
            resolver,
            prices,
            clock,
            fold: Arc::new(Mutex::new(fold)),
        })
    }

    /// Begins this server's part of the ledger: lives that nobody ended and
    /// that do not run any more end where they were last seen.
    ///
    /// # Errors
    /// When the ledger cannot be read or written.
    pub async fn begin(&self) -> anyhow::Result<()> {
        let now = self.clock.unix_ms();
        self.writer.append(&Entry::ServerStart {
            unix_ms: now,
            boot: boot(),
        })?;
        let alive = self.records.alive();
        let fold = self.refreshed().await?;
        let lost: Vec<(InstanceId, u64, u64)> = {
            let fold = fold.lock().unwrap_or_else(PoisonError::into_inner);
            fold.open_lives()
                .filter(|(instance, ..)| !alive.contains(instance))
                .collect()
        };
        for (instance, lifetime_us, cpu_us) in lost {
            let reason = "ended while no server watched".to_owned();
            self.writer.append(&Entry::InstanceEnd(InstanceEnd {
                instance,
                unix_ms: now,
                lifetime_us,
                cpu_us,
                reason,
            }))?;
        }
        Ok(())
    }

    /// Saves what is derived and what was counted.
    pub async fn save(&self, exact: bool) {
        let counts = self.records.counts(exact);
        if let Err(error) = counts.save(&self.folder) {
            tracing::warn!(error = %chain(&error), "the gateway's counts were not saved");
        }
        match self.refreshed().await {
            Ok(fold) => {
                let saved = fold
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .save(&sums(&self.folder));
                if let Err(error) = saved {
                    tracing::warn!(error = %chain(&error), "the ledger's sums were not saved");
                }
            }
            Err(error) => tracing::warn!(%error, "the ledger was not read"),
        }
    }

    /// Ends this server's part of the ledger.
    pub async fn end(&self) {
        if let Err(error) = self.writer.append(&Entry::ServerStop {
            unix_ms: self.clock.unix_ms(),
        }) {
            tracing::warn!(error = %chain(&error), "the ledger's last entry was not written");
        }
        self.save(true).await;
    }

    async fn refreshed(&self) -> Result<Arc<Mutex<Fold>>, PortError> {
        let (fold, folder) = (Arc::clone(&self.fold), self.folder.clone());
        blocking(move || {
            let mut sum = fold.lock().unwrap_or_else(PoisonError::into_inner);
            sum.refresh(&Ledger::new(&folder))
                .map_err(|error| refused(&error))?;
            drop(sum);
            Ok(fold)
        })
        .await
    }

    /// The names of the projects that stand in a bill.
    async fn names(
        &self,
        bill: impl Fn(&dyn Fn(&ProjectId) -> Option<ProjectName>),
    ) -> HashMap<ProjectId, ProjectName> {
        let asked = Mutex::new(HashSet::new());
        bill(&|id| {
            asked
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id.clone());
            None
        });
        let mut names = HashMap::new();
        for id in asked.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if let Some(name) = self.resolver.project_name(&id).await {
                names.insert(id, name);
            }
        }
        names
    }

    /// The gateway's totals and what it told the records, over all services.
    fn compare_totals(&self) -> UsageCheckRow {
        // The gateway counts after it has told: the later reading is the higher one.
        let counted: u64 = self
            .gateway
            .counts()
            .iter()
            .map(|count| count.requests)
            .sum();
        let told: u64 = self
            .records
            .counts(false)
            .services
            .values()
            .map(|counts| counts.requests)
            .sum();
        UsageCheckRow {
            name: "every request that the gateway finished was recorded".to_owned(),
            ok: counted <= told,
            detail: format!("{counted} finished, {told} recorded since this server began"),
        }
    }
}

impl UsageSource for Meter {
    fn usage(&self, query: UsageQuery) -> BoxFuture<'_, Result<Usage, PortError>> {
        async move {
            let fold = self.refreshed().await?;
            let query = skiff_meter::UsageQuery {
                from_unix_ms: query.from_unix_ms,
                to_unix_ms: query.to_unix_ms,
                now_unix_ms: self.clock.unix_ms(),
                project: query.project,
                service: query.service,
                alive: self.records.alive().into_iter().collect(),
            };
            let bill = |name: &dyn Fn(&ProjectId) -> Option<ProjectName>| {
                let fold = fold.lock().unwrap_or_else(PoisonError::into_inner);
                skiff_meter::usage(&fold, &query, &self.prices, name)
            };
            let names = self.names(|name| drop(bill(name))).await;
            Ok(bill(&|id| names.get(id).cloned()))
        }
        .boxed()
    }

    fn check(
        &self,
        _from_unix_ms: u64,
        _to_unix_ms: u64,
    ) -> BoxFuture<'_, Result<UsageCheck, PortError>> {
        async move {
            let totals = self.compare_totals();
            // What still grows is taken first: the ledger may only have more.
            let own = self.records.counts(false);
            let (lives, since) = self.records.lives();
            let fold = self.refreshed().await?;
            let folder = self.folder.clone();
            let mut check = blocking(move || {
                let mut gateway =
                    GatewayCounts::load_all(&folder).map_err(|error| refused(&error))?;
                gateway.retain(|counts| counts.summary.writer != own.summary.writer);
                gateway.push(own);
                let fold = fold.lock().unwrap_or_else(PoisonError::into_inner);
                let sources = Sources {
                    gateway: &gateway,
                    lives: &lives,
                    lives_complete_since: Some(since),
                    aggregates: Some(&fold),
                };
                skiff_meter::check(&Ledger::new(&folder), &sources).map_err(|error| refused(&error))
            })
            .await?;
            check.ok &= totals.ok;
            check.checks.push(totals);
            Ok(check)
        }
        .boxed()
    }
}

impl Traces for Meter {
    fn cold_starts(
        &self,
        project: &ProjectId,
        service: Option<&ServiceName>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<ColdStart>, PortError>> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let found = self.records.cold_starts(project, service, limit);
        async { Ok(found) }.boxed()
    }
}

fn sums(folder: &Path) -> PathBuf {
    folder.join("sums")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PortError> + Send + 'static,
) -> Result<T, PortError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(PortError::new(ErrorKind::Internal, error.to_string())))
}

fn refused(error: &(dyn std::error::Error + 'static)) -> PortError {
    PortError::new(ErrorKind::Internal, chain(error).to_string())
}

/// A number for this boot of the machine: a crash of the server alone loses
/// nothing, one of the machine at most a second.
fn boot() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(16)
        .collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}
