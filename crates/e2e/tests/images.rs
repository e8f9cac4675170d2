//! Images from registries, folders and tars, and their collection.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use skiff_e2e::{good, layout_with_layer};
use skiff_testkit::{Registry, Server, ServerOptions, fixture, run};

fn start(registry: &str) -> Server {
    Server::start(ServerOptions::default().set(format!("images.plain_http={registry}")))
}

fn images(server: &Server) -> Vec<Value> {
    server.json(&["image", "ls"]).as_array().unwrap().clone()
}

fn layers_on_disk(server: &Server) -> usize {
    let folder = server.data_dir().join("images/layers");
    let files = std::fs::read_dir(folder).unwrap().flatten();
    files
        .filter(|file| file.file_name().to_string_lossy().ends_with(".erofs"))
        .count()
}

/// The test application's image with one more layer that has this file.
fn variant(folder: &std::path::Path, name: &str, file: &str) -> std::path::PathBuf {
    let content = folder.join(format!("{name}.content"));
    std::fs::create_dir_all(&content).unwrap();
    std::fs::write(content.join(file), file).unwrap();
    let tar = folder.join(format!("{name}.layer"));
    let words = [
        "-cf",
        tar.to_str().unwrap(),
        "-C",
        content.to_str().unwrap(),
        ".",
    ];
    let _out = run("tar", words).ok();
    layout_with_layer(folder, name, &std::fs::read(tar).unwrap())
}

#[test]
fn from_a_real_registry_to_an_answer() {
    let registry = Registry::start();
    let server = start(registry.address());
    let folder = tempfile::tempdir().unwrap();
    let one = registry.push(&variant(folder.path(), "one", "first"), "team/app:one");
    let two = registry.push(&variant(folder.path(), "two", "second"), "team/app:two");

    let _url = server
        .cli(&["deploy", "pulled", "--image", &one, "--memory", "64"])
        .ok();
    assert!(good(server.get(&server.host_of("pulled"), "/")).starts_with("hello"));
    let _out = server.cli(&["image", "pull", &two]).ok();
    // Both have the application's layer, and it is there once.
    assert_eq!(images(&server).len(), 2);
    assert_eq!(layers_on_disk(&server), 3);

    // A tag that moves does not move a revision.
    let before =
        server.json(&["describe", "pulled"])["revisions"][0]["spec"]["containers"][0]["digest"]
            .clone();
    let moved = registry.push(&fixture("testapp"), "team/app:one");
    assert_eq!(moved, one);
    let _out = server.cli(&["image", "pull", &one]).ok();
    let after =
        server.json(&["describe", "pulled"])["revisions"][0]["spec"]["containers"][0]["digest"]
            .clone();
    assert_eq!(before, after);

    let _out = server.cli(&["image", "rm", &two]).ok();
    let _out = server.cli(&["image", "prune"]).ok();
    let used: Vec<String> = images(&server)
        .iter()
        .map(|image| image["used_by"].to_string())
        .collect();
    assert_eq!(layers_on_disk(&server), 2);
    assert!(used.iter().any(|by| by.contains("pulled")), "{used:?}");
    assert_eq!(layers_on_disk(&server), 2);
    let host = server.host_of("pulled");
    let _out = server.cli(&["scale", "pulled", "--min", "1"]).ok();
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let _out = server.cli(&["rm", "pulled"]).ok();
    let _out = server.cli(&["image", "prune"]).ok();
    assert_eq!((images(&server).len(), layers_on_disk(&server)), (0, 0));
}

#[test]
fn an_image_in_use_is_not_removed() {
    let server = Server::start(ServerOptions::with(&["testapp"]));
    let host = server.deploy("user", &["--keep-alive", "0"]);
    let digest = images(&server)[0]["digest"].as_str().unwrap().to_owned();
    let told = server.cli(&["image", "rm", &digest]).failed();
    assert!(told.contains("user-00001"), "{told}");
    server.wait_for_instances("user", 0);
    let _out = server.cli(&["image", "prune"]).ok();
    assert!(good(server.get(&host, "/")).starts_with("hello"));
}

#[test]
fn from_folders_tars_and_standard_input() {
    let server = Server::start(ServerOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let layout = fixture("testapp");
    let source = format!("oci:{}:1", layout.display());
    let docker = folder.path().join("docker.tar");
    let oci = folder.path().join("oci.tar");
    for (kind, path) in [("docker-archive", &docker), ("oci-archive", &oci)] {
        let target = format!("{kind}:{}:app:{kind}", path.display());
        let _out = run(
            "skopeo",
            ["copy", "--quiet", "--insecure-policy", &source, &target],
        )
        .ok();
    }
    let _out = server
        .cli(&[
            "image",
            "import",
            layout.to_str().unwrap(),
            "--name",
            "folder:1",
        ])
        .ok();
    let _out = server
        .cli(&["image", "import", oci.to_str().unwrap(), "--name", "oci:1"])
        .ok();
    let saved = std::fs::read(&docker).unwrap();
    let _out = server
        .cli_with_input(&["image", "import", "-", "--name", "saved:1"], &saved)
        .ok();
    // The same layer three times is there once.
    assert_eq!(layers_on_disk(&server), 1);
    for name in ["folder", "oci", "saved"] {
        let image = format!("{name}:1");
        let _url = server
            .cli(&["deploy", name, "--image", &image, "--memory", "64"])
            .ok();
        assert!(good(server.get(&server.host_of(name), "/")).starts_with("hello"));
    }
    let cut = &saved[..saved.len() / 2];
    let told = server
        .cli_with_input(&["image", "import", "-", "--name", "cut:1"], cut)
        .failed();
    assert_eq!(told.lines().count(), 1, "{told}");
    let told = server
        .cli_with_input(&["image", "import", "-", "--name", "no:1"], b"no tar")
        .failed();
    assert_eq!(told.lines().count(), 1, "{told}");
    let names: Vec<String> = images(&server)
        .iter()
        .map(|image| image["references"].to_string())
        .collect();
    assert!(
        !names
            .iter()
            .any(|name| name.contains("cut") || name.contains("no:1")),
        "{names:?}"
    );
}

/// Passes connections on to a registry until it has given so many bytes of
/// answers; then the registry is gone.
fn leaving_proxy(registry: &str, bytes: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let registry = registry.to_owned();
    let left = Arc::new(AtomicUsize::new(bytes));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if left.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let server = TcpStream::connect(&registry).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let left = Arc::clone(&left);
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || pass_on(server, client, &left));
        }
    });
    address
}

fn pass_on(mut server: TcpStream, mut client: TcpStream, left: &AtomicUsize) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        let before = left.load(Ordering::SeqCst);
        if count > before || client.write_all(&buffer[..count]).is_err() {
            left.store(0, Ordering::SeqCst);
            break;
        }
        left.store(before - count, Ordering::SeqCst);
    }
    let _gone = client.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_registry_that_goes_in_mid_pull_is_told_and_leaves_nothing() {
    let registry = Registry::start();
    let _pushed = registry.push(&fixture("testapp"), "app:1");
    // Manifest and configuration come through, of the layer only a beginning.
    let proxy = leaving_proxy(registry.address(), 20_000);
    let server = start(&proxy);
    let image = format!("{proxy}/app:1");
    let told = server
        .cli(&["deploy", "never", "--image", &image, "--memory", "64"])
        .failed();
    assert_eq!(
        told.lines()
            .filter(|line| line.starts_with("skiff: "))
            .count(),
        1,
        "{told}"
    );
    assert!(told.contains(&image), "{told}");
    assert!(told.contains("did not give the blob sha256:"), "{told}");
    assert!(told.contains("in 5 tries"), "{told}");
    assert_eq!(images(&server).len(), 0);
    assert_eq!(layers_on_disk(&server), 0);

    drop(registry);
    let told = server
        .cli(&["image", "pull", &format!("{proxy}/app:2")])
        .failed();
    assert!(told.contains("app:2"), "{told}");
    // What cannot be there is told apart from what cannot be reached.
    let registry = Registry::start();
    let _pushed = registry.push(&fixture("testapp"), "app:1");
    let server = start(registry.address());
    let told = server
        .cli(&["image", "pull", &format!("{}/app:none", registry.address())])
        .failed();
    assert!(told.contains("app:none"), "{told}");
    let told = server.cli(&["image", "pull", "UPPER/Case:1"]).failed();
    assert!(told.contains("UPPER"), "{told}");
}

#[test]
fn an_image_for_another_processor_is_refused_in_both_classes() {
    let registry = Registry::start();
    let server = start(registry.address());
    let folder = tempfile::tempdir().unwrap();
    let layout = variant(folder.path(), "arm", "for another machine");
    let image = format!("{}:1", layout.display());
    let args = ["config", "--image", &image, "--architecture", "arm64"];
    let _out = run("umoci", args).ok();
    let name = registry.push(&layout, "team/arm:1");
    let refused = |image: &str| {
        for class in ["container", "microvm"] {
            let args = ["deploy", "foreign", "--image", image, "--isolation", class];
            let told = server.cli(&args).failed();
            assert!(told.contains("linux/arm64"), "{class}: {told}");
        }
    };
    refused(&name);
    // One that is there already, because it was asked for.
    let args = ["image", "pull", &name, "--platform", "linux/arm64"];
    let _out = server.cli(&args).ok();
    let stored = images(&server);
    let [stored] = &*stored else {
        panic!("{stored:?}")
    };
    assert_eq!(stored["platform"], "linux/arm64");
    refused(&name);
    refused(stored["digest"].as_str().unwrap());
}
