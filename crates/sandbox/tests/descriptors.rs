//! No descriptor stays open. Alone in its file: it counts all of the
//! process's.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Act, FakeLauncher, PATIENCE, id, obey, server, spec};
use skiff_sandbox::{Backend, ContainerBackend, Exits, LauncherClient};
use skiff_wire::launcher::Request;
use tokio::time::timeout;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Lives, creations that are given up, and an end by a malformed frame that
/// carries descriptors.
async fn round() {
    let (launcher, socket) = FakeLauncher::start(|envelope, fds| {
        if matches!(envelope.request, Request::Stats { .. }) {
            let fds = (0..8).map(|_| std::fs::File::open("/dev/null").unwrap().into());
            return vec![Act::Raw(b"\x01\xff".to_vec(), fds.collect())];
        }
        drop(fds);
        obey(envelope)
    });
    let client = LauncherClient::over(socket, server(), Exits::default())
        .await
        .unwrap();
    let backend = ContainerBackend::new(client.clone());
    for number in 0..20 {
        let created = backend.create(spec(id(number))).await.unwrap();
        let refused = created.sandbox.connect(1).await;
        assert!(refused.is_err());
        created.sandbox.destroy().await.unwrap();
    }
    for number in 20..40 {
        let create = backend.create(spec(id(number)));
        tokio::select! {
            biased;
            _ = create => {}
            () = tokio::task::yield_now() => {}
        }
    }
    let last = backend.create(spec(id(50))).await.unwrap();
    assert!(last.sandbox.stats().await.is_err());
    timeout(PATIENCE, client.closed()).await.unwrap();
    drop((last, backend, client));
    launcher.join();
}

#[tokio::test]
async fn no_descriptor_stays_open() {
    round().await;
    let before = open_descriptors();
    for _ in 0..10 {
        round().await;
    }
    assert_eq!(open_descriptors(), before);
}
