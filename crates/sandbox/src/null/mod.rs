//! The class that isolates nothing because nothing runs: connections end in
//! this process and every request is answered `ok`. For measuring what stands
//! around a sandbox, and for tests.

mod http;
mod stream;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, Tasks};
use skiff_types::{InstanceId, IsolationClass};
use skiff_wire::launcher::{Exit, Stats};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use self::stream::NullStream;
use crate::{Backend, CreateSpec, Created, Found, Sandbox, SandboxError};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// How sandboxes of the class null behave; all of it off by default.
#[derive(Clone, Debug, Default)]
pub struct NullOptions {
    /// How long a creation takes.
    pub create_delay: Duration,
    /// How long after its creation a sandbox refuses connections.
    pub ready_delay: Duration,
    /// How long each answer takes.
    pub answer_delay: Duration,
    /// Every creation is refused with these words.
    pub refuse: Option<String>,
    /// How a sandbox ends by itself, and how long after its creation.
    pub exit_after: Option<(Duration, Exit)>,
    /// It ends by SIGKILL only.
    pub ignores_signals: bool,
}

/// Makes sandboxes in which nothing runs.
#[derive(Debug, Default)]
pub struct NullBackend {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    options: NullOptions,
    alive: AtomicU64,
    /// Owns the tasks of sandboxes that end by themselves.
    tasks: Tasks,
}

impl NullBackend {
    /// A backend whose sandboxes behave so.
    #[must_use]
    pub fn new(options: NullOptions) -> Self {
        Self {
            shared: Arc::new(Shared {
                options,
                ..Shared::default()
            }),
        }
    }

    /// Sandboxes made and not destroyed.
    #[must_use]
    pub fn alive(&self) -> u64 {
        self.shared.alive.load(Ordering::Relaxed)
    }

    async fn make(&self, spec: CreateSpec) -> Result<Created, SandboxError> {
        let options = &self.shared.options;
        if !options.create_delay.is_zero() {
            sleep(options.create_delay).await;
        }
        if let Some(message) = &options.refuse {
            return Err(SandboxError::Refused {
                instance: spec.instance,
                step: "null".to_owned(),
                message: message.clone(),
            });
        }
        self.shared.alive.fetch_add(1, Ordering::Relaxed);
        let sandbox = Arc::new(NullSandbox {
            id: spec.instance,
            exit: watch::Sender::new(None),
            ready_at: (!options.ready_delay.is_zero())
                .then(|| Instant::now() + options.ready_delay),
            shared: self.shared.clone(),
        });
        if let Some((delay, exit)) = options.exit_after {
            let ending = sandbox.clone();
            self.shared.tasks.spawn("null exit", async move {
                sleep(delay).await;
                ending.end(exit);
            });
        }
        Ok(Created {
            sandbox,
            output: None,
            steps_us: vec![],
            paused: false,
        })
    }
}

impl Backend for NullBackend {
    fn class(&self) -> IsolationClass {
        IsolationClass::Null
    }

    fn create(&self, spec: CreateSpec) -> BoxFuture<'_, Result<Created, SandboxError>> {
        Box::pin(self.make(spec))
    }

    fn adopt(&self) -> BoxFuture<'_, Result<Vec<Found>, SandboxError>> {
        // They lived in the process that is gone.
        Box::pin(async { Ok(vec![]) })
    }
}

#[derive(Debug)]
struct NullSandbox {
    id: InstanceId,
    exit: watch::Sender<Option<Exit>>,
    ready_at: Option<Instant>,
    shared: Arc<Shared>,
}

impl NullSandbox {
    fn end(&self, exit: Exit) {
        self.exit
            .send_if_modified(|known| known.is_none() && known.replace(exit).is_none());
    }

    fn open(&self) -> io::Result<ByteStream> {
        let refuses = self.ready_at.is_some_and(|at| Instant::now() < at);
        if refuses || self.exit.borrow().is_some() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let delay = self.shared.options.answer_delay;
        let stream = NullStream::new(self.exit.subscribe(), delay);
        Ok(ByteStream::Inline(Box::pin(stream)))
    }
}

impl Drop for NullSandbox {
    fn drop(&mut self) {
        self.shared.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sandbox for NullSandbox {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn class(&self) -> IsolationClass {
        IsolationClass::Null
    }

    fn connect(&self, _port: u16) -> BoxFuture<'_, io::Result<ByteStream>> {
        let opened = self.open();
        Box::pin(async { opened })
    }

    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>> {
        let exit = if signal == SIGKILL {
            Some(Exit {
                signal: Some(SIGKILL),
                ..code(None)
            })
        } else {
            let heeds = signal == SIGTERM && !self.shared.options.ignores_signals;
            heeds.then(|| code(Some(0)))
        };
        if let Some(exit) = exit {
            self.end(exit);
        }
        Box::pin(async { Ok(()) })
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async { Ok(()) })
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async { Ok(()) })
    }

    fn stats(&self) -> BoxFuture<'_, Result<Stats, SandboxError>> {
        Box::pin(async { Ok(Stats::default()) })
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        let mut exit = self.exit.subscribe();
        Box::pin(async move {
            let known = exit.wait_for(Option::is_some).await;
            known.ok().and_then(|exit| *exit).unwrap_or(code(None))
        })
    }

    fn destroy(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.end(Exit {
            signal: Some(SIGKILL),
            ..code(None)
        });
        Box::pin(async { Ok(()) })
    }
}

fn code(code: Option<i32>) -> Exit {
    Exit {
        code,
        signal: None,
        out_of_memory: false,
        cpu_us: 0,
        memory_peak_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use skiff_base::{Clock, SystemClock};
    use skiff_wire::launcher::{ProcessSpec, Writable};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn spec(number: u32) -> CreateSpec {
        CreateSpec {
            instance: InstanceId::from_parts(1, number),
            layers: vec![],
            process: ProcessSpec {
                args: vec![],
                env: vec![],
                cwd: "/".into(),
                uid: 0,
                gid: 0,
                additional_gids: vec![],
                nofile: 1,
            },
            hostname: "a".into(),
            memory_bytes: 1,
            cpu_millis: 1,
            pids: 1,
            writable: Writable::Tmpfs { bytes: 1 },
            readonly_root: false,
            egress: false,
            function: false,
            label: vec![],
        }
    }

    async fn get(sandbox: &dyn Sandbox) -> io::Result<String> {
        let mut stream = sandbox.connect(8080).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await?;
        let mut buffer = [0; 256];
        let len = stream.read(&mut buffer).await?;
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    }

    #[tokio::test]
    async fn it_answers_until_it_is_destroyed() {
        let backend = NullBackend::default();
        let sandbox = backend.create(spec(1)).await.unwrap().sandbox;
        assert!(get(&*sandbox).await.unwrap().starts_with("HTTP/1.1 200"));
        let mut open = sandbox.connect(8080).await.unwrap();
        sandbox.destroy().await.unwrap();
        assert_eq!(sandbox.exited().await.signal, Some(SIGKILL));
        assert_eq!(open.read(&mut [0; 8]).await.unwrap(), 0);
        let refused = get(&*sandbox).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop((sandbox, open));
        assert_eq!(backend.alive(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_and_ends_happen_as_asked() {
        let exit = code(Some(3));
        let backend = NullBackend::new(NullOptions {
            ready_delay: Duration::from_secs(2),
            exit_after: Some((Duration::from_secs(5), exit)),
            ignores_signals: true,
            ..NullOptions::default()
        });
        let sandbox = backend.create(spec(1)).await.unwrap().sandbox;
        assert!(get(&*sandbox).await.is_err());
        sleep(Duration::from_secs(3)).await;
        assert!(get(&*sandbox).await.is_ok());
        sandbox.signal(SIGTERM).await.unwrap();
        assert_eq!(sandbox.exited().await, exit);
    }

    /// The whole server makes thousands of these a second; this class must
    /// not be what bounds it. The bound is for a build without optimisation.
    #[tokio::test]
    async fn a_life_is_cheap() {
        const LIVES: u32 = 5_000;
        let backend = NullBackend::default();
        let start = SystemClock.now();
        for number in 0..LIVES {
            let sandbox = backend.create(spec(number)).await.unwrap().sandbox;
            assert!(get(&*sandbox).await.is_ok());
            sandbox.destroy().await.unwrap();
        }
        let took = SystemClock.now().since(start);
        let per_second = f64::from(LIVES) / took.as_secs_f64();
        println!("{per_second:.0} lives a second");
        assert!(per_second > 1_000.0, "{per_second:.0} lives a second");
    }
}
