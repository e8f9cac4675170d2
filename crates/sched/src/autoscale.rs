//! How many instances a revision should have, from its averages: Knative's
//! pod autoscaler (stable and panic window) in whole numbers.
//!
//! ```text
//!            burst >= threshold × ready
//!   stable ────────────────────────────▶ panic  (never fewer than before)
//!      ▲                                   │
//!      └──── a whole stable window below ──┘
//! ```

use skiff_base::Monotonic;

use crate::revision::Key;
use crate::scheduler::Scheduler;
use crate::{Action, Config, StopReason};

/// What the decision is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    /// Instances that the stable window's average needs.
    pub(crate) stable: u32,
    /// Instances that the panic window's average needs.
    pub(crate) burst: u32,
    /// Instances that are ready.
    pub(crate) ready: u32,
}

/// Whether a burst is on, and the most it has asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Panic {
    over_threshold_at: Option<Monotonic>,
    most: u32,
}

impl Panic {
    /// How many instances there should be now, before `min` and `max`.
    pub(crate) fn decide(&mut self, now: Monotonic, demand: Demand, config: &Config) -> u32 {
        let ready = demand.ready.max(1);
        let most = ready.saturating_mul(config.scale_up_factor);
        let least = (demand.ready / config.scale_down_divisor.max(1)).min(most);
        let stable = demand.stable.clamp(least, most);
        let burst = demand.burst.clamp(least, most);
        self.update(now, demand.burst, ready, config);
        if self.over_threshold_at.is_none() {
            return stable;
        }
        self.most = self.most.max(stable).max(burst);
        self.most
    }

    fn update(&mut self, now: Monotonic, burst: u32, ready: u32, config: &Config) {
        let threshold = u64::from(ready) * u64::from(config.panic_threshold_percent);
        if u64::from(burst) * 100 >= threshold {
            self.over_threshold_at = Some(now);
        } else if let Some(last) = self.over_threshold_at
            && now.since(last) > config.stable_window
        {
            *self = Self::default();
        }
    }
}

impl Scheduler {
    /// Looks at the averages, when it is time to.
    pub(crate) fn autoscale(&mut self, key: Key, out: &mut Vec<Action>) {
        let Some(revision) = self.revisions.get_mut(key) else {
            return;
        };
        if revision.next_tick.is_none_or(|at| at > self.now) {
            return;
        }
        if revision.keep_alive().is_zero() {
            // Nothing is kept, or made, that no request has asked for.
            revision.window = None;
            revision.next_tick = None;
            return;
        }
        let target = revision.target_milli(&self.config);
        let quiet = revision.live() + revision.stopping + revision.waiting == 0;
        let Some(window) = &mut revision.window else {
            revision.next_tick = None;
            return;
        };
        window.advance(self.now);
        if window.is_empty() && quiet {
            revision.window = None;
            revision.next_tick = None;
            return;
        }
        revision.next_tick = Some(self.now.plus(self.config.tick));
        let demand = Demand {
            stable: window.instances(self.config.stable_window, target),
            burst: window.instances(self.config.panic_window, target),
            ready: revision.ready,
        };
        let desired = revision.panic.decide(self.now, demand, &self.config);
        let floor = revision.floor();
        let max = revision.plan.scaling.max;
        // What the last seconds do not need any more is not started.
        // While there is no request at all, an average of past ones is no
        // reason to start: the next request is.
        let silent = revision.waiting + revision.in_flight == 0;
        let needed = if silent { 0 } else { desired.min(demand.burst) };
        let up = needed.clamp(floor, max.max(floor));
        let down = desired.max(floor).max(1);
        let live = revision.live();
        if up > live {
            revision.surplus_since = None;
            // Nobody waits for these: without room they are not started, and
            // nobody else's instance stops for them.
            for _ in live..up {
                if !matches!(self.start_one(key, out), Ok(true)) {
                    break;
                }
            }
        } else if down < live {
            let since = *revision.surplus_since.get_or_insert(self.now);
            if self.now.since(since) >= revision.keep_alive() {
                self.stop_some(key, live - down, StopReason::ScaleDown, out);
            }
        } else {
            revision.surplus_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_nanos((1000 + seconds) * 1_000_000_000)
    }

    #[test]
    fn decisions_follow_the_reference() {
        // stable, burst, ready => expected
        let table = [
            (0, 0, 0, 0),
            (0, 0, 1, 0),
            (1, 1, 1, 1),
            (3, 3, 2, 3),
            // Down by half at most.
            (1, 1, 10, 5),
            // A burst of twice what is ready wins over the stable average.
            (1, 8, 4, 8),
            (1, 7, 4, 2),
            // Up by a thousand times at most.
            (5000, 5000, 1, 1000),
        ];
        for (stable, burst, ready, expected) in table {
            let demand = Demand {
                stable,
                burst,
                ready,
            };
            let decided = Panic::default().decide(at(0), demand, &Config::default());
            assert_eq!(decided, expected, "{demand:?}");
        }
    }

    #[test]
    fn a_panic_scales_down_only_after_a_whole_stable_window() {
        let mut panic = Panic::default();
        let mut decide = |seconds, stable, burst, ready| {
            let demand = Demand {
                stable,
                burst,
                ready,
            };
            panic.decide(at(seconds), demand, &Config::default())
        };
        assert_eq!(decide(0, 1, 10, 2), 10);
        assert_eq!(decide(2, 2, 3, 10), 10);
        assert_eq!(decide(60, 2, 0, 10), 10);
        assert_eq!(decide(62, 2, 0, 10), 5);
    }
}
