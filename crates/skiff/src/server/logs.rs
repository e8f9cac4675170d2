//! The worker's logs, as the control plane asks for them.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use skiff_base::chain;
use skiff_control::port::{LogQuery, Logs, PortError};
use skiff_types::api::LogLine;
use skiff_types::{ErrorKind, LogPage, LogRange, LogSpan, ProjectId, RevisionId, ServiceName};
use skiff_worker::{Worker, WorkerError};

/// What this worker's instances wrote.
#[derive(Debug)]
pub struct WorkerLogs(pub Arc<Worker>);

impl Logs for WorkerLogs {
    fn read(
        &self,
        query: LogQuery,
    ) -> BoxFuture<'_, Result<BoxStream<'static, LogLine>, PortError>> {
        async move {
            let revision = query.revision.map(|number| RevisionId {
                project: query.project.clone(),
                service: query.service.clone(),
                number,
            });
            let wanted = skiff_worker::LogQuery {
                project: query.project,
                service: query.service,
                revision,
                instance: query.instance,
                tail: usize::try_from(query.tail).ok(),
                since_unix_ms: query.since_unix_ms.unwrap_or(0),
            };
            if !query.follow {
                let lines = self.0.logs(wanted).await.map_err(|error| refused(&error))?;
                return Ok(stream::iter(lines).boxed());
            }
            let follow = self
                .0
                .follow(wanted)
                .await
                .map_err(|error| refused(&error))?;
            let lines = stream::unfold(follow, |mut follow| async move {
                let line = follow.next().await?;
                Some((line, follow))
            });
            Ok(lines.boxed())
        }
        .boxed()
    }

    fn page(&self, range: LogRange) -> BoxFuture<'_, Result<LogPage, PortError>> {
        let page = self.0.log_page(range);
        page.map(|read| read.map_err(|error| refused(&error)))
            .boxed()
    }

    fn spans(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> BoxFuture<'_, Result<Vec<LogSpan>, PortError>> {
        let spans = self.0.log_spans(project.clone(), service.clone());
        spans
            .map(|read| read.map_err(|error| refused(&error)))
            .boxed()
    }
}

fn refused(error: &WorkerError) -> PortError {
    PortError::new(ErrorKind::Internal, chain(error).to_string())
}
