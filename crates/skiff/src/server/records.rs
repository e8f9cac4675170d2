//! What gateway and worker record, into the ledger and the traces.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skiff_base::{Clock, chain};
use skiff_gateway::{ColdPhases, Records, RequestRecord};
use skiff_meter::{Entry, GatewayCounts, LedgerWriter, LifeReport, RequestEntry};
use skiff_types::api::ColdStart;
use skiff_types::{InstanceId, IsolationClass, ProjectId, RevisionId, ServiceName};
use skiff_worker::{InstanceEnd, InstanceStart, WorkerRecords};

/// Cold starts that are remembered, of all projects.
const TRACES_MAX: usize = 10_000;
/// Ended lives that are remembered for comparison with the ledger.
const LIVES_MAX: usize = 100_000;

/// Ledger and traces.
#[derive(Debug)]
pub struct ServerRecords {
    ledger: Arc<LedgerWriter>,
    clock: Arc<dyn Clock>,
    traces: Mutex<VecDeque<Trace>>,
    /// Requests as they are told here, summed apart from the ledger.
    counts: Mutex<GatewayCounts>,
    lives: Mutex<Lives>,
}

/// A cold start as it is remembered; what it is in the API's words is made
/// when somebody asks.
#[derive(Debug)]
struct Trace {
    revision: RevisionId,
    instance: InstanceId,
    class: IsolationClass,
    unix_ms: u64,
    phases_us: [u64; PHASES.len()],
    /// What the phase `sandbox` was spent on, as far as that is known.
    steps_us: Vec<(String, u32)>,
}

const SANDBOX: &str = "sandbox";
const PHASES: [&str; 6] = ["queue", "placement", "image", SANDBOX, "app", "first_byte"];

impl Trace {
    fn told(&self) -> ColdStart {
        ColdStart {
            unix_ms: self.unix_ms,
            service: self.revision.service.clone(),
            revision: self.revision.name(),
            instance: self.instance,
            class: self.class,
            phases_us: self.phases(),
            total_us: self.phases_us.iter().sum(),
        }
    }

    /// With the steps of the sandbox's making in front of what is left of it.
    fn phases(&self) -> Vec<(String, u64)> {
        let mut told = Vec::new();
        for (name, mut us) in PHASES.into_iter().zip(self.phases_us) {
            if name == SANDBOX {
                for (step, step_us) in &self.steps_us {
                    let step_us = u64::from(*step_us).min(us);
                    told.push((step.clone(), step_us));
                    us -= step_us;
                }
            }
            told.push((name.to_owned(), us));
        }
        told
    }
}

/// Lives as the worker tells them, apart from the ledger.
#[derive(Debug, Default)]
struct Lives {
    /// When each living instance began, milliseconds since 1970.
    born: HashMap<InstanceId, u64>,
    /// How living instances' sandboxes were made, until their cold starts are
    /// told.
    steps_us: HashMap<InstanceId, Vec<(String, u32)>>,
    ended: VecDeque<LifeReport>,
    /// Since when all that ended are in `ended`, milliseconds since 1970.
    complete_since: u64,
}

impl ServerRecords {
    pub fn new(ledger: Arc<LedgerWriter>, clock: Arc<dyn Clock>) -> Self {
        let lives = Lives {
            complete_since: clock.unix_ms(),
            ..Lives::default()
        };
        Self {
            ledger,
            clock,
            traces: Mutex::default(),
            counts: Mutex::default(),
            lives: Mutex::new(lives),
        }
    }

    /// An adopted instance: its start was recorded by a former server.
    pub fn adopted(&self, instance: InstanceId, created_unix_ms: u64) {
        lock(&self.lives).born.insert(instance, created_unix_ms);
    }

    /// The steps of making a living instance's sandbox.
    pub fn made(&self, instance: InstanceId, steps_us: Vec<(String, u32)>) {
        let mut lives = lock(&self.lives);
        if lives.born.contains_key(&instance) {
            lives.steps_us.insert(instance, steps_us);
        }
    }

    /// What has been counted since this server began; `exact` at its end.
    pub fn counts(&self, exact: bool) -> GatewayCounts {
        let mut counts = lock(&self.counts).clone();
        counts.summary = self.ledger.summary();
        counts.exact = exact;
        counts
    }

    /// The lives that are known, and since when all of them are.
    pub fn lives(&self) -> (Vec<LifeReport>, u64) {
        let lives = lock(&self.lives);
        let living = lives
            .born
            .iter()
            .map(|(&instance, &start_unix_ms)| LifeReport {
                instance,
                start_unix_ms,
                end: None,
            });
        (
            lives.ended.iter().copied().chain(living).collect(),
            lives.complete_since,
        )
    }

    /// Instances that live now.
    pub fn alive(&self) -> Vec<InstanceId> {
        lock(&self.lives).born.keys().copied().collect()
    }

    /// The newest cold starts of a project.
    pub fn cold_starts(
        &self,
        project: &ProjectId,
        service: Option<&ServiceName>,
        limit: usize,
    ) -> Vec<ColdStart> {
        let traces = lock(&self.traces);
        let wanted = traces.iter().rev().filter(|trace| {
            trace.revision.project == *project
                && service.is_none_or(|service| *service == trace.revision.service)
        });
        wanted.take(limit).map(Trace::told).collect()
    }

    fn note_end(&self, end: &InstanceEnd) {
        let mut lives = lock(&self.lives);
        let Some(start_unix_ms) = lives.born.remove(&end.instance) else {
            return;
        };
        lives.steps_us.remove(&end.instance);
        if lives.ended.len() >= LIVES_MAX
            && let Some(forgotten) = lives.ended.pop_front()
        {
            lives.complete_since = lives.complete_since.max(forgotten.start_unix_ms + 1);
        }
        lives.ended.push_back(LifeReport {
            instance: end.instance,
            start_unix_ms,
            end: Some((end.lifetime_us, end.cpu_us)),
        });
    }

    fn append(&self, entry: &Entry) {
        if let Err(error) = self.ledger.append(entry) {
            // The ledger notes the gap itself; the operator has to make room.
            tracing::error!(error = %chain(&error), "an entry of the ledger was not written");
        }
    }
}

impl Records for ServerRecords {
    fn request(&self, record: &RequestRecord) {
        let entry = RequestEntry {
            instance: Some(record.instance),
            project: record.revision.project.clone(),
            service: record.revision.service.clone(),
            revision: record.revision.number,
            class: record.class,
            start_unix_ms: record.start_unix_ms,
            duration_us: record.duration_us,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            status: record.status,
            cold: record.cold,
        };
        lock(&self.counts).add(&entry);
        self.append(&Entry::Request(entry));
    }

    fn cold_start(
        &self,
        revision: &RevisionId,
        instance: InstanceId,
        class: IsolationClass,
        phases: &ColdPhases,
    ) {
        let steps_us = lock(&self.lives).steps_us.remove(&instance);
        let trace = Trace {
            revision: revision.clone(),
            instance,
            class,
            unix_ms: phases.unix_ms,
            phases_us: [
                phases.queue_us,
                phases.placement_us,
                phases.image_us,
                phases.sandbox_us,
                phases.app_us,
                phases.first_byte_us,
            ],
            steps_us: steps_us.unwrap_or_default(),
        };
        let mut traces = lock(&self.traces);
        if traces.len() >= TRACES_MAX {
            traces.pop_front();
        }
        traces.push_back(trace);
    }
}

impl WorkerRecords for ServerRecords {
    fn instance_start(&self, start: &InstanceStart) {
        lock(&self.lives).born.insert(start.instance, start.unix_ms);
        let entry = skiff_meter::InstanceStart {
            instance: start.instance,
            project: start.revision.project.clone(),
            service: start.revision.service.clone(),
            revision: start.revision.number,
            class: start.class,
            memory_mib: start.memory_mib,
            unix_ms: start.unix_ms,
        };
        self.append(&match start.fell_back.clone() {
            None => Entry::InstanceStart(entry),
            Some(why) => Entry::FellBack { start: entry, why },
        });
    }

    fn instance_sample(&self, instance: InstanceId, lifetime_us: u64, cpu_us: u64) {
        let unix_ms = self.clock.unix_ms();
        self.append(&Entry::InstanceSample(skiff_meter::InstanceSample {
            instance,
            unix_ms,
            lifetime_us,
            cpu_us,
        }));
    }

    fn instance_end(&self, end: &InstanceEnd) {
        self.note_end(end);
        self.append(&Entry::InstanceEnd(skiff_meter::InstanceEnd {
            instance: end.instance,
            unix_ms: end.unix_ms,
            lifetime_us: end.lifetime_us,
            cpu_us: end.cpu_us,
            reason: end.reason.clone(),
        }));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(sandbox_us: u64, steps_us: &[(&str, u32)]) -> Vec<(String, u64)> {
        let trace = Trace {
            revision: RevisionId {
                project: "000000000000".parse().unwrap(),
                service: "hello".parse().unwrap(),
                number: 1,
            },
            instance: InstanceId::from_parts(0, 1),
            class: IsolationClass::Microvm,
            unix_ms: 0,
            phases_us: [1, 2, 3, sandbox_us, 5, 6],
            steps_us: steps_us
                .iter()
                .map(|(name, us)| ((*name).to_owned(), *us))
                .collect(),
        };
        let told = trace.told();
        let sum: u64 = told.phases_us.iter().map(|(_, us)| us).sum();
        assert_eq!(sum, told.total_us, "the phases are the whole");
        told.phases_us[3..told.phases_us.len() - 2].to_vec()
    }

    #[test]
    fn a_sandboxs_steps_are_told_before_the_rest_of_it() {
        let check = |sandbox_us, steps: &[(&str, u32)], expect: &[(&str, u64)]| {
            let expect: Vec<_> = expect
                .iter()
                .map(|(name, us)| ((*name).to_owned(), *us))
                .collect();
            assert_eq!(phases(sandbox_us, steps), expect);
        };
        check(100, &[], &[("sandbox", 100)]);
        let steps = [("monitor", 10), ("kernel", 70)];
        check(
            100,
            &steps,
            &[("monitor", 10), ("kernel", 70), ("sandbox", 20)],
        );
        check(
            75,
            &steps,
            &[("monitor", 10), ("kernel", 65), ("sandbox", 0)],
        );
    }
}
