//! Reads what every instance uses, and has logs collected, now and then.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::instance::InstanceState;
use crate::worker::Inner;

/// One reading's time.
const READING_DEADLINE: Duration = Duration::from_secs(5);

/// Samples until the worker ends.
pub async fn run(inner: Arc<Inner>) {
    let mut ticks = interval(inner.config.sample_period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut collected = inner.clock.now();
    loop {
        ticks.tick().await;
        sample_all(&inner).await;
        let now = inner.clock.now();
        if now.since(collected) >= inner.config.log_limits.collect_period {
            collected = now;
            if let Err(error) = inner.logs.collect().await {
                tracing::warn!(%error, "logs were not collected");
            }
        }
    }
}

async fn sample_all(inner: &Inner) {
    for instance in inner.table.all() {
        if !matches!(
            instance.state(),
            InstanceState::Ready | InstanceState::Paused
        ) {
            continue;
        }
        match timeout(READING_DEADLINE, instance.stats()).await {
            Ok(Ok(stats)) => {
                let lifetime_us = instance.lifetime_us(inner.clock.now());
                inner
                    .records
                    .instance_sample(instance.id, lifetime_us, stats.cpu_us);
            }
            Ok(Err(error)) => {
                tracing::debug!(error = %skiff_base::chain(&error), "no sample");
            }
            Err(_late) => tracing::warn!(instance = %instance.id, "no sample in time"),
        }
    }
}
