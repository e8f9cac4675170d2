//! How an event ended goes to its destinations, one after the other.

use skiff_base::UtcTime;
use skiff_lambda::{FunctionRef, LambdaError, Qualifier};
use skiff_queue::{
    Address, Event, FunctionKey, Outcome, PAYLOAD_BYTES_MAX, Phase, Purpose, State, Stored, Target,
    Write, record,
};

use super::courier::{CourierError, Message};
use super::{Refused, Turn, count};
use crate::lambda::Front;

/// Destinations between an event from outside and the last one, so that
/// functions that are each other's destinations come to an end (AWS,
/// "recursive loop detection").
const HOPS_MAX: u8 = 16;

/// A record was not delivered.
#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error(transparent)]
    Target(#[from] skiff_queue::TargetError),
    #[error(transparent)]
    Courier(#[from] CourierError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("its function cannot be looked up")]
    Function(#[source] LambdaError),
    #[error("it is of another project")]
    Foreign,
    #[error("{HOPS_MAX} destinations lie behind this event already")]
    Loop,
    #[error("the record has over {PAYLOAD_BYTES_MAX} bytes, which no function takes")]
    TooLarge,
}

impl DeliveryError {
    /// Another try cannot change it.
    const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Target(_) | Self::Foreign | Self::Loop | Self::TooLarge
        )
    }
}

impl Front {
    pub(super) async fn deliver(&self, turn: Turn, stored: Stored, number: u8) {
        let target = stored.outcome.as_ref().and_then(|outcome| {
            let target = outcome.targets.get(usize::from(number));
            target.map(|target| (outcome, target))
        });
        let Some((outcome, target)) = target else {
            let id = turn.id();
            self.events.note(Write::Done { id }).await;
            return turn.done(self.now());
        };
        let id = turn.id();
        let state = State {
            tries: turn.state().tries + 1,
            ..turn.state()
        };
        if let Err(error) = self.events.write(Write::State { id, state }).await {
            let error = skiff_base::chain(&error);
            tracing::error!(event = %id, %error, "a delivery cannot be written, and is put off");
            return turn.pause(self.now());
        }
        let sent = self.send_to(target, &stored, outcome).await;
        let now = self.now();
        let counts = &self.events.counts;
        let next = match sent {
            Ok(()) => {
                count(&counts.delivered);
                None
            }
            Err(error) => {
                count(&counts.delivery_failed);
                let random = skiff_base::random::u32();
                let again = self.events.delays.delivery(state, now, random);
                let again = again.filter(|_| !error.is_final());
                let (function, request) = (&stored.event.arn, &stored.event.request_id);
                let error = skiff_base::chain(&error);
                match again {
                    Some(_) => {
                        tracing::warn!(%function, %request, %target, tries = state.tries, %error, "an event's destination was not told, and is tried again");
                    }
                    None => {
                        count(&counts.delivery_given_up);
                        tracing::error!(%function, %request, %target, tries = state.tries, %error, "an event's destination is given up");
                    }
                }
                again
            }
        };
        let state = match next {
            Some(state) => state,
            None => {
                let next = number.saturating_add(1);
                if usize::from(next) >= outcome.targets.len() {
                    self.events.note(Write::Done { id }).await;
                    return turn.done(now);
                }
                State::begin(Phase::Deliver(next), now)
            }
        };
        self.events.note(Write::State { id, state }).await;
        turn.again(state, now);
    }

    async fn send_to(
        &self,
        target: &Target,
        stored: &Stored,
        outcome: &Outcome,
    ) -> Result<(), DeliveryError> {
        let response = stored.response.as_deref();
        let body = match target.purpose {
            Purpose::Record => record::record(&stored.event, outcome, &stored.payload, response),
            Purpose::DeadLetter => stored.payload.clone(),
        };
        match target.read()? {
            Address::Function(arn) => self.send_to_function(&arn, stored, body).await,
            Address::Web(url) => {
                let headers = cloud_event(&stored.event, outcome, target.purpose);
                Ok(self.events.courier.post(&url, &headers, body).await?)
            }
            Address::Queue { account, name } => {
                if account != stored.event.function.project.as_str() {
                    return Err(DeliveryError::Foreign);
                }
                let (code, message) = record::complaint(outcome, response);
                let attributes = match target.purpose {
                    Purpose::Record => Vec::new(),
                    Purpose::DeadLetter => vec![
                        ("RequestID", "String", stored.event.request_id.clone()),
                        ("ErrorCode", "Number", code.to_owned()),
                        ("ErrorMessage", "String", message),
                    ],
                };
                let message = Message {
                    account,
                    queue: name,
                    body,
                    attributes,
                };
                let now_s = self.now() / 1000;
                Ok(self.events.courier.enqueue(message, now_s).await?)
            }
        }
    }

    /// The record is an event of that function's.
    async fn send_to_function(
        &self,
        arn: &str,
        stored: &Stored,
        body: Vec<u8>,
    ) -> Result<(), DeliveryError> {
        let of = &stored.event;
        let target = FunctionRef::parse(arn).map_err(|_| DeliveryError::Foreign)?;
        if target.account.as_ref() != Some(&of.function.project) {
            return Err(DeliveryError::Foreign);
        }
        if of.hops >= HOPS_MAX {
            return Err(DeliveryError::Loop);
        }
        if body.len() > PAYLOAD_BYTES_MAX {
            return Err(DeliveryError::TooLarge);
        }
        let project = &of.function.project;
        let view = self.control.function_view(project, &target.name);
        view.await.map_err(DeliveryError::Function)?;
        let function = FunctionKey {
            project: project.clone(),
            name: target.name.service().clone(),
        };
        let event = Event {
            function,
            qualifier: target.qualifier.as_ref().map(Qualifier::to_string),
            arn: arn.to_owned(),
            request_id: crate::lambda::call::uuid(),
            accepted_unix_ms: self.now(),
            client_context: None,
            trace_id: of.trace_id.clone(),
            key: None,
            hops: of.hops + 1,
        };
        self.events.accept(event, body).await?;
        Ok(())
    }
}

/// CloudEvents 1.0, HTTP binding §3.1: attributes in headers, data as it is.
fn cloud_event(event: &Event, outcome: &Outcome, purpose: Purpose) -> [(&'static str, String); 6] {
    let kind = match purpose {
        Purpose::Record => format!("skiff.event.{}", outcome.condition.name()),
        Purpose::DeadLetter => "skiff.event.DeadLetter".to_owned(),
    };
    [
        ("content-type", "application/json".to_owned()),
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", event.request_id.clone()),
        ("ce-source", event.arn.clone()),
        ("ce-type", kind),
        ("ce-time", UtcTime::of_unix_ms(outcome.unix_ms).to_string()),
    ]
}
