use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use proptest::prelude::*;
use serde_json::{Value, json};
use skiff_virtio::{BucketChange, LimitsChange};
use skiff_wire::monitor::{DiskStats, Stats};

use super::server::MAX_CONNECTIONS;
use super::{Api, ApiError, ApiThread, Guest};
use crate::{Config, MachineError};

#[path = "../../tests/support/http.rs"]
mod client;

use client::{Client, request};

/// A machine that notes what it is told.
#[derive(Debug, Default)]
struct Fake {
    told: Mutex<Vec<String>>,
    paused: AtomicBool,
}

impl Fake {
    fn note(&self, what: impl Into<String>) -> Result<(), MachineError> {
        self.told.lock().unwrap().push(what.into());
        Ok(())
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

impl Guest for Fake {
    fn pause(&self) -> Result<(), MachineError> {
        self.paused.store(true, Ordering::SeqCst);
        self.note("pause")
    }

    fn resume(&self) -> Result<(), MachineError> {
        self.paused.store(false, Ordering::SeqCst);
        self.note("resume")
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    fn limit_disk(&self, id: &str, change: LimitsChange) -> Result<(), MachineError> {
        self.note(format!("limit {id} {}", in_words(change)))
    }

    fn limit_interface(
        &self,
        id: &str,
        receive: LimitsChange,
        transmit: LimitsChange,
    ) -> Result<(), MachineError> {
        let (receive, transmit) = (in_words(receive), in_words(transmit));
        self.note(format!("limit {id} {receive} {transmit}"))
    }

    fn replace_disk(&self, id: &str, path: &Path, file: File) -> Result<(), MachineError> {
        let bytes = file.metadata().unwrap().len();
        let name = path.file_name().unwrap().display().to_string();
        self.note(format!("replace {id} {name} {bytes}"))
    }

    fn stats(&self) -> Stats {
        Stats {
            disks: vec![DiskStats {
                disk: "root".into(),
                read_bytes: 4096,
                ..DiskStats::default()
            }],
            ..Stats::default()
        }
    }
}

fn in_words(change: LimitsChange) -> String {
    let word = |bucket| match bucket {
        BucketChange::Keep => "keep".into(),
        BucketChange::Lift => "lift".into(),
        BucketChange::Set(bucket) => bucket.size.to_string(),
    };
    format!("{}/{}", word(change.bytes), word(change.operations))
}

/// An API whose machine is a fake one.
struct Bench {
    folder: tempfile::TempDir,
    guest: Arc<Fake>,
    end: Option<OwnedFd>,
    thread: Option<JoinHandle<Option<ApiThread>>>,
}

/// Fails to be made when the kernel is so called.
const BROKEN: &str = "broken";

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["kernel", BROKEN, "initrd", "disk"] {
            std::fs::write(folder.path().join(name), [0; 512]).unwrap();
        }
        let mut api = Api::listen(&folder.path().join("api"), "vm-1", false).unwrap();
        let guest = Arc::<Fake>::default();
        let theirs = Arc::clone(&guest);
        let (ended, end) = std::io::pipe().unwrap();
        let thread = std::thread::spawn(move || {
            let start = |config: &Config| {
                let path = &config.boot_source.kernel_image_path;
                if path.ends_with(BROKEN) {
                    return Err(MachineError::NoDisk { id: "a".into() });
                }
                let names = config.ordered_drives().map(|drive| drive.drive_id.as_str());
                let interfaces = config.network_interfaces.iter();
                let names = names.chain(interfaces.map(|interface| interface.iface_id.as_str()));
                let names: String = names.map(|name| format!(" {name}")).collect();
                theirs.note(format!("start {}{names}", config.machine_config.vcpu_count))
            };
            let started = api.configure(ended.as_fd(), start).unwrap();
            started.map(|()| ApiThread::spawn(api, theirs, || true).unwrap())
        });
        Self {
            folder,
            guest,
            end: Some(end.into()),
            thread: Some(thread),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client(&self) -> Client {
        Client::connect(&self.path("api"))
    }

    fn kernel(&self, name: &str) -> String {
        json!({"kernel_image_path": self.path(name), "boot_args": "quiet"}).to_string()
    }

    fn drive(&self, id: &str, more: &str) -> String {
        let path = self.path("disk");
        format!(r#"{{"drive_id":{id:?},"path_on_host":{path:?}{more}}}"#)
    }

    fn start(&self, client: &mut Client) {
        client.tell("PUT", "/boot-source", &self.kernel("kernel"));
        client.tell("PUT", "/actions", START);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

const START: &str = r#"{"action_type":"InstanceStart"}"#;
const FLUSH: &str = r#"{"action_type":"FlushMetrics"}"#;
const CTRL_ALT_DEL: &str = r#"{"action_type":"SendCtrlAltDel"}"#;
const PAUSED: &str = r#"{"state":"Paused"}"#;
const RESUMED: &str = r#"{"state":"Resumed"}"#;

/// Asks for each, and looks for the fault.
fn refused(client: &mut Client, table: &[(&str, &str, &str, &str)]) {
    for (method, path, body, said) in table {
        let (status, answer) = client.ask(method, path, body);
        assert_eq!(status, 400, "{method} {path} {body}: {answer}");
        let fault = answer["fault_message"].as_str().unwrap_or_default();
        assert!(fault.contains(said), "{method} {path} {body}: {fault}");
    }
}

#[test]
fn what_is_asked_for_is_told() {
    let bench = Bench::new();
    let mut client = bench.client();
    let version = env!("CARGO_PKG_VERSION");
    let instance = |state| json!({"id": "vm-1", "state": state, "vmm_version": version, "app_name": "skiff-vmm"});
    assert_eq!(client.ask("GET", "/", ""), (200, instance("Not started")));
    let told = json!({"firecracker_version": version});
    assert_eq!(client.ask("GET", "/version", ""), (200, told));
    let default = json!({
        "vcpu_count": 1, "mem_size_mib": 128,
        "smt": false, "track_dirty_pages": false, "huge_pages": "None",
    });
    assert_eq!(client.ask("GET", "/machine-config", ""), (200, default));

    bench.start(&mut client);
    assert_eq!(client.ask("GET", "/", ""), (200, instance("Running")));
    client.tell("PATCH", "/vm", PAUSED);
    assert_eq!(client.ask("GET", "/", ""), (200, instance("Paused")));
    client.tell("PATCH", "/vm", PAUSED);
    client.tell("PATCH", "/vm", RESUMED);
    client.tell("PUT", "/actions", FLUSH);
    assert_eq!(client.ask("GET", "/", ""), (200, instance("Running")));
    assert_eq!(bench.guest.told(), ["start 1", "pause", "pause", "resume"]);
}

#[test]
fn a_machines_size_is_put_and_patched_whole_or_not_at_all() {
    let bench = Bench::new();
    let mut client = bench.client();
    let put = r#"{"vcpu_count":2,"mem_size_mib":256,"smt":false,"track_dirty_pages":false,"huge_pages":"None","cpu_template":"None"}"#;
    client.tell("PUT", "/machine-config", put);
    client.tell("PATCH", "/machine-config", r#"{"mem_size_mib":512}"#);
    let path = "/machine-config";
    refused(
        &mut client,
        &[
            (
                "PUT",
                path,
                r#"{"vcpu_count":2}"#,
                "missing field `mem_size_mib`",
            ),
            (
                "PUT",
                path,
                r#"{"vcpu_count":33,"mem_size_mib":1}"#,
                "machine-config.vcpu_count is 33: it must be from 1 to 32",
            ),
            (
                "PUT",
                path,
                r#"{"vcpu_count":0,"mem_size_mib":128}"#,
                "vcpu_count is 0",
            ),
            (
                "PUT",
                path,
                r#"{"vcpu_count":1,"mem_size_mib":0}"#,
                "mem_size_mib is 0",
            ),
            (
                "PUT",
                path,
                r#"{"vcpu_count":1,"mem_size_mib":128,"smt":true}"#,
                "can only be false",
            ),
            (
                "PUT",
                path,
                r#"{"vcpu_count":1,"mem_size_mib":128,"track_dirty_pages":true}"#,
                "can only be false",
            ),
            (
                "PUT",
                path,
                r#"{"vcpu_count":1,"mem_size_mib":128,"huge_pages":"2M"}"#,
                "unknown variant `2M`",
            ),
            (
                "PUT",
                path,
                r#"{"vcpu_count":1,"mem_size_mib":128,"cpu_template":"T2"}"#,
                "unknown variant `T2`",
            ),
            (
                "PUT",
                path,
                r#"{"vcpu_count":1,"mem_size_mib":128,"more":1}"#,
                "unknown field `more`",
            ),
            ("PUT", path, "", "a PUT request has a body"),
            ("PATCH", path, "", "a PATCH request has a body"),
            ("PATCH", path, "{}", "nothing is to be changed"),
            ("PATCH", path, r#"{"vcpu_count":0}"#, "vcpu_count is 0"),
            ("PATCH", path, r#"{"vcpu_count":"#, "the body is wrong: EOF"),
            ("PATCH", path, "\u{1f600}", "the body is wrong"),
        ],
    );
    let (_, config) = client.ask("GET", path, "");
    assert_eq!(
        (&config["vcpu_count"], &config["mem_size_mib"]),
        (&json!(2), &json!(512))
    );
    bench.start(&mut client);
    assert_eq!(bench.guest.told(), ["start 2"]);
}

#[test]
fn each_request_has_its_time() {
    let bench = Bench::new();
    let mut client = bench.client();
    let early = "once the machine is started";
    refused(
        &mut client,
        &[
            ("PUT", "/actions", START, "boot-source is missing"),
            ("PUT", "/actions", FLUSH, early),
            ("PUT", "/actions", CTRL_ALT_DEL, early),
            ("PATCH", "/vm", PAUSED, early),
            ("PATCH", "/vm", RESUMED, early),
        ],
    );
    bench.start(&mut client);
    let late = "before the machine is started";
    let kernel = bench.kernel("kernel");
    refused(
        &mut client,
        &[
            ("PUT", "/actions", START, late),
            ("PUT", "/actions", CTRL_ALT_DEL, "no keyboard"),
            ("PUT", "/boot-source", &kernel, late),
            (
                "PUT",
                "/machine-config",
                r#"{"vcpu_count":1,"mem_size_mib":128}"#,
                late,
            ),
            ("PATCH", "/machine-config", r#"{"vcpu_count":1}"#, late),
        ],
    );
    assert_eq!(bench.guest.told(), ["start 1"]);
}

#[test]
fn devices_are_put_and_put_again() {
    let bench = Bench::new();
    let mut client = bench.client();
    let full = r#","is_root_device":false,"is_read_only":true,"cache_type":"Writeback","io_engine":"Sync",
        "rate_limiter":{"bandwidth":{"size":0,"one_time_burst":0,"refill_time":0},"ops":null}"#;
    client.tell("PUT", "/drives/data", &bench.drive("data", full));
    let root = r#","is_root_device":true,"is_read_only":true"#;
    client.tell("PUT", "/drives/root", &bench.drive("root", root));
    client.tell("PUT", "/drives/data", &bench.drive("data", ""));
    let interface =
        r#"{"iface_id":"eth_0","host_dev_name":"tap0","guest_mac":"06:00:AC:10:00:02","mtu":1500}"#;
    client.tell("PUT", "/network-interfaces/eth_0", interface);
    client.tell("PUT", "/network-interfaces/eth_0", interface);
    client.tell(
        "PUT",
        "/vsock",
        r#"{"guest_cid":3,"uds_path":"/v","vsock_id":"old"}"#,
    );
    client.tell("PUT", "/entropy", "{}");
    client.tell(
        "PUT",
        "/serial",
        r#"{"serial_out_path":"/out","rate_limiter":{"size":5,"refill_time":7}}"#,
    );
    let disk = json!(bench.path("disk"));
    let (_, whole) = client.ask("GET", "/vm/config", "");
    let drive = |id, root| {
        json!({
            "drive_id": id, "path_on_host": disk, "is_root_device": root, "is_read_only": root,
            "cache_type": "Unsafe", "io_engine": "Sync", "rate_limiter": null,
        })
    };
    assert_eq!(
        whole["drives"],
        json!([drive("data", false), drive("root", true)])
    );
    let interfaces = whole["network-interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 1);
    assert_eq!(interfaces[0]["guest_mac"], "06:00:ac:10:00:02");
    assert_eq!(whole["vsock"], json!({"guest_cid": 3, "uds_path": "/v"}));
    assert_eq!(whole["entropy"], json!({}));
    assert_eq!(whole["serial"]["rate_limiter"]["bandwidth"]["size"], 5);
    // What is told can be a file.
    assert!(serde_json::from_value::<Config>(whole).is_ok());
    bench.start(&mut client);
    assert_eq!(bench.guest.told(), ["start 1 root data eth_0"]);
}

#[test]
fn devices_that_cannot_be_are_refused() {
    let bench = Bench::new();
    let mut client = bench.client();
    let root = r#","is_root_device":true"#;
    client.tell("PUT", "/drives/root", &bench.drive("root", root));
    let drive = |more| bench.drive("a", more);
    let missing = r#"{"drive_id":"a","path_on_host":"/nonexistent/disk"}"#;
    let (path, net) = ("/drives/a", "/network-interfaces/a");
    refused(
        &mut client,
        &[
            ("PUT", "/drives", "{}", "PUT /drives is no request"),
            ("PUT", "/drives/", &drive(""), "PUT /drives/ is no request"),
            ("PUT", "/drives/a/b", &drive(""), "is no request"),
            (
                "PUT",
                "/drives/b",
                &drive(""),
                "the path names \"b\" and the body \"a\"",
            ),
            (
                "PUT",
                "/drives/a.b",
                &bench.drive("a.b", ""),
                "letters, digits, _ and -",
            ),
            ("PUT", "/drives/%61", &drive(""), "the path names \"%61\""),
            ("PUT", path, &drive(root), "another drive is the root"),
            ("PUT", path, missing, "/nonexistent/disk cannot be opened"),
            (
                "PUT",
                path,
                r#"{"drive_id":"a"}"#,
                "missing field `path_on_host`",
            ),
            (
                "PUT",
                path,
                &drive(r#","io_engine":"Async""#),
                "unknown variant `Async`",
            ),
            (
                "PUT",
                path,
                &drive(r#","partuuid":"0eaa91a0-01""#),
                "this monitor does not have it",
            ),
            (
                "PUT",
                path,
                &drive(r#","rate_limiter":{"ops":{"size":1}}"#),
                "missing field `refill_time`",
            ),
            (
                "PUT",
                net,
                r#"{"iface_id":"b","host_dev_name":"tap0"}"#,
                "the path names",
            ),
            ("PUT", net, r#"{"iface_id":"a"}"#, "host_dev_name or tap_fd"),
            (
                "PUT",
                net,
                r#"{"iface_id":"a","host_dev_name":"tap0","guest_mac":"x"}"#,
                "no address",
            ),
            (
                "PUT",
                net,
                r#"{"iface_id":"a","host_dev_name":"tap0","mtu":67}"#,
                "68 or more",
            ),
            (
                "PUT",
                "/vsock",
                r#"{"guest_cid":2,"uds_path":"/v"}"#,
                "guest_cid is 2: it must be from 3 to 4294967294",
            ),
            (
                "PUT",
                "/vsock",
                r#"{"guest_cid":4294967295,"uds_path":"/v"}"#,
                "guest_cid is",
            ),
            (
                "PUT",
                "/entropy",
                r#"{"rate_limiter":{}}"#,
                "this monitor does not have it",
            ),
            (
                "PATCH",
                path,
                r#"{"drive_id":"a"}"#,
                "once the machine is started",
            ),
            (
                "PATCH",
                net,
                r#"{"iface_id":"a"}"#,
                "once the machine is started",
            ),
        ],
    );
    for number in 1..19 {
        let id = format!("d{number}");
        client.tell("PUT", &format!("/drives/{id}"), &bench.drive(&id, ""));
    }
    let last = (
        "PUT",
        "/vsock",
        r#"{"guest_cid":3,"uds_path":"/v"}"#,
        "19 devices at most",
    );
    refused(&mut client, &[last]);
    assert_eq!(client.ask("GET", "/vm/config", "").1["vsock"], Value::Null);
}

#[test]
fn limits_are_changed_while_the_machine_runs() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.tell("PUT", "/drives/root", &bench.drive("root", ""));
    let net = "/network-interfaces/eth0";
    client.tell("PUT", net, r#"{"iface_id":"eth0","host_dev_name":"tap0"}"#);
    bench.start(&mut client);
    let bucket = |size| json!({"size": size, "refill_time": 100});
    let drive = |limits| json!({"drive_id": "root", "rate_limiter": limits}).to_string();
    client.tell(
        "PATCH",
        "/drives/root",
        &drive(json!({"bandwidth": bucket(5), "ops": bucket(6)})),
    );
    client.tell("PATCH", "/drives/root", &drive(json!({"ops": bucket(0)})));
    client.tell(
        "PATCH",
        net,
        &json!({"iface_id": "eth0", "tx_rate_limiter": {"bandwidth": bucket(7)}}).to_string(),
    );
    client.tell("PATCH", net, r#"{"iface_id":"eth0"}"#);
    assert_eq!(
        bench.guest.told()[1..],
        [
            "limit root 5/6",
            "limit root keep/lift",
            "limit eth0 keep/keep 7/keep",
            "limit eth0 keep/keep keep/keep",
        ]
    );
    let (_, whole) = client.ask("GET", "/vm/config", "");
    let limits = &whole["drives"][0]["rate_limiter"];
    assert_eq!(
        (&limits["bandwidth"]["size"], &limits["ops"]["size"]),
        (&json!(5), &json!(0))
    );
    let limits = &whole["network-interfaces"][0]["tx_rate_limiter"];
    assert_eq!(limits["bandwidth"]["size"], 7);
    let told = bench.guest.told().len();
    let change = |path: &str, more: &str| {
        let path = bench.path(path);
        format!(r#"{{"drive_id":"root","path_on_host":{path:?}{more}}}"#)
    };
    client.tell("PATCH", "/drives/root", &change("initrd", ""));
    let more = r#","rate_limiter":{"ops":{"size":9,"refill_time":100}}"#;
    client.tell("PATCH", "/drives/root", &change("disk", more));
    let expected = [
        "replace root initrd 512",
        "replace root disk 512",
        "limit root keep/9",
    ];
    assert_eq!(bench.guest.told()[told..], expected);
    let (_, whole) = client.ask("GET", "/vm/config", "");
    let path = whole["drives"][0]["path_on_host"].as_str().unwrap();
    assert_eq!(Path::new(path), bench.path("disk"));
    std::fs::create_dir(bench.path("folder")).unwrap();
    let (missing, folder) = (change("missing", ""), change("folder", ""));
    refused(
        &mut client,
        &[
            ("PATCH", "/drives/root", &missing, "No such file"),
            ("PATCH", "/drives/root", &folder, "Is a directory"),
            (
                "PATCH",
                "/drives/root",
                r#"{"drive_id":"root"}"#,
                "nothing is to be changed",
            ),
            (
                "PATCH",
                "/drives/other",
                r#"{"drive_id":"root"}"#,
                "the path names",
            ),
            (
                "PATCH",
                "/drives/a",
                r#"{"drive_id":"a","rate_limiter":{}}"#,
                "there is no drive \"a\"",
            ),
            (
                "PATCH",
                "/network-interfaces/a",
                r#"{"iface_id":"a"}"#,
                "there is no network interface \"a\"",
            ),
            (
                "PATCH",
                "/drives/root",
                r#"{"drive_id":"root","is_read_only":true}"#,
                "unknown field",
            ),
            (
                "PUT",
                "/drives/root",
                &bench.drive("root", ""),
                "before the machine is started",
            ),
            ("PUT", "/entropy", "{}", "before the machine is started"),
            ("PUT", "/serial", "{}", "before the machine is started"),
        ],
    );
}

#[test]
fn metrics_are_told_when_asked_for_and_at_the_end() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let body = json!({"metrics_path": bench.path("metrics")}).to_string();
    client.tell("PUT", "/metrics", &body);
    refused(
        &mut client,
        &[
            ("PUT", "/metrics", &body, "told already"),
            (
                "PUT",
                "/metrics",
                r#"{"metrics_path":"/nonexistent/m"}"#,
                "told already",
            ),
            ("PUT", "/drives/a", "{}", "missing field"),
        ],
    );
    client.tell("PUT", "/drives/a", &bench.drive("a", ""));
    bench.start(&mut client);
    client.tell("PATCH", "/vm", PAUSED);
    client.tell("PUT", "/actions", FLUSH);
    refused(
        &mut client,
        &[("PUT", "/metrics", &body, "before the machine")],
    );
    client.tell("PUT", "/actions", FLUSH);
    drop(bench.thread.take().unwrap().join().unwrap());
    let text = std::fs::read_to_string(bench.path("metrics")).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3, "{text}");
    let puts = |line: usize, name: &str| lines[line]["put_api_requests"][name].as_u64().unwrap();
    let of = |name| [0, 1, 2].map(|line| puts(line, name));
    assert_eq!(
        (of("drive_count"), of("drive_fails")),
        ([2, 0, 0], [1, 0, 0])
    );
    assert_eq!(
        (of("metrics_count"), of("metrics_fails")),
        ([3, 1, 0], [2, 1, 0])
    );
    // The one that flushes is counted once it is done.
    assert_eq!(of("actions_count"), [1, 1, 1]);
    let read = [0, 1, 2].map(|line| lines[line]["block_root"]["read_bytes"].clone());
    assert_eq!(read, [json!(4096), json!(0), json!(0)]);
    assert!(lines[0]["latencies_us"]["pause_vm"].is_u64());
    assert!(lines[0]["utc_timestamp_ms"].is_u64());
    // What was never asked for is there as well.
    for (group, name) in [
        ("get_api_requests", "vmm_version_count"),
        ("put_api_requests", "vsock_fails"),
        ("patch_api_requests", "network_count"),
        ("latencies_us", "resume_vm"),
    ] {
        assert_eq!(lines[0][group][name], 0, "{group} {name}");
    }
}

#[test]
fn requests_are_logged_as_the_logger_says() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let logger = |level: &str| {
        json!({"log_path": bench.path("log"), "level": level, "show_level": true, "show_log_origin": false})
            .to_string()
    };
    client.tell("PUT", "/logger", &logger("info"));
    client.ask("GET", "/version", "");
    client.tell("PUT", "/logger", &logger("ERROR"));
    client.ask("GET", "/version", "");
    refused(
        &mut client,
        &[
            (
                "PUT",
                "/logger",
                r#"{"level":"Loud"}"#,
                "none of Off, Error, Warning",
            ),
            (
                "PUT",
                "/logger",
                r#"{"log_path":"/nonexistent/log"}"#,
                "log_path: /nonexistent/log cannot be opened",
            ),
            (
                "PUT",
                "/logger",
                r#"{"module":"api"}"#,
                "this monitor does not have it",
            ),
            ("PUT", "/entropy", "{\"a\\nb\":1}", "unknown field `a\nb`"),
        ],
    );
    client.tell(
        "PUT",
        "/logger",
        r#"{"level":"Warning","show_log_origin":true}"#,
    );
    bench.start(&mut client);
    refused(
        &mut client,
        &[("PUT", "/logger", "{}", "before the machine")],
    );
    let thread = bench.thread.take().unwrap().join().unwrap().unwrap();
    thread.end("the guest asked for a reset [reset]".into());
    let text = std::fs::read_to_string(bench.path("log")).unwrap();
    let said: Vec<&str> = text
        .lines()
        .map(|line| line.split_once(" [vm-1").unwrap().1)
        .collect();
    assert_eq!(said.len(), 7, "{text}");
    assert_eq!(said[0], ":INFO] PUT /logger: done");
    assert_eq!(said[1], ":INFO] GET /version: done");
    assert!(
        said[2].starts_with(":ERROR] PUT /logger: the body is wrong: \"Loud\""),
        "{text}"
    );
    assert!(
        said[5].starts_with(":ERROR] PUT /entropy: the body is wrong: unknown field `a b`"),
        "{text}"
    );
    assert!(said[6].starts_with(":crates/vmm/src/api/mod.rs:"), "{text}");
}

#[test]
fn a_machine_that_cannot_be_made_is_changed_and_started_again() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.tell("PUT", "/boot-source", &bench.kernel(BROKEN));
    refused(
        &mut client,
        &[("PUT", "/actions", START, "window-disks has no disk")],
    );
    let missing = bench.kernel("missing");
    refused(
        &mut client,
        &[
            (
                "PUT",
                "/boot-source",
                &missing,
                "missing cannot be opened: No such file",
            ),
            (
                "PUT",
                "/boot-source",
                r#"{"boot_args":"quiet"}"#,
                "missing field `kernel_image_path`",
            ),
        ],
    );
    bench.start(&mut client);
    assert_eq!(bench.guest.told(), ["start 1"]);
}

#[test]
fn what_is_not_here_is_told() {
    let bench = Bench::new();
    let mut client = bench.client();
    for _ in 0..2 {
        refused(
            &mut client,
            &[
                (
                    "GET",
                    "/nonsense",
                    "",
                    "GET /nonsense is no request of this API",
                ),
                ("GET", "/vm", "", "GET /vm is no request"),
                ("GET", "/machine-config/more", "", "is no request"),
                ("GET", "/?x=y", "", "is no request"),
                ("PUT", "/", "{}", "PUT / is no request"),
                ("PUT", "/version", "{}", "PUT /version is no request"),
                ("PATCH", "/actions", "{}", "PATCH /actions is no request"),
                ("GET", "/", "{}", "a GET request has no body"),
                (
                    "PUT",
                    "/actions",
                    r#"{"action_type":"Dance"}"#,
                    "unknown variant `Dance`",
                ),
                (
                    "PUT",
                    "/actions",
                    r#"{"action_type":"InstanceStart","payload":1}"#,
                    "unknown field",
                ),
                (
                    "PATCH",
                    "/vm",
                    r#"{"state":"Running"}"#,
                    "unknown variant `Running`",
                ),
                ("GET", "/balloon", "", "has no balloon"),
                ("PATCH", "/balloon/statistics", "{}", "has no balloon"),
                ("PUT", "/cpu-config", "{}", "has no CPU templates"),
                (
                    "PUT",
                    "/hotplug/memory",
                    "{}",
                    "has no memory that is plugged in later",
                ),
                ("GET", "/mmds", "", "has no metadata service"),
                ("PUT", "/mmds/config", "{}", "has no metadata service"),
                ("PUT", "/pmem/a", "{}", "has no persistent memory"),
                ("PUT", "/snapshot/create", "{}", "has no snapshots"),
                ("PUT", "/snapshot/load", "{}", "has no snapshots"),
            ],
        );
        if bench.guest.told().is_empty() {
            bench.start(&mut client);
        }
    }
}

#[test]
fn requests_come_in_pieces_and_many_at_once() {
    let bench = Bench::new();
    let mut client = bench.client();
    let put = request(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":3,"mem_size_mib":128}"#,
    );
    for byte in &put {
        client.send(&[*byte]);
    }
    assert_eq!(client.receive(), Some((204, Value::Null)));
    // Over the start as well: what is behind it is for the machine that runs.
    client.send(
        &[
            request("PUT", "/boot-source", &bench.kernel("kernel")),
            request("GET", "/machine-config", ""),
            request("PUT", "/actions", START),
            request("GET", "/", ""),
            request("PATCH", "/vm", PAUSED),
            request("GET", "/", ""),
        ]
        .concat(),
    );
    assert_eq!(client.receive(), Some((204, Value::Null)));
    assert_eq!(client.receive().unwrap().1["vcpu_count"], 3);
    assert_eq!(client.receive(), Some((204, Value::Null)));
    assert_eq!(client.receive().unwrap().1["state"], "Running");
    assert_eq!(client.receive(), Some((204, Value::Null)));
    assert_eq!(client.receive().unwrap().1["state"], "Paused");
}

#[test]
fn a_client_that_waits_to_send_its_body_is_told_to() {
    let bench = Bench::new();
    let mut client = bench.client();
    let body = r#"{"vcpu_count":2,"mem_size_mib":128}"#;
    let length = body.len();
    client.send(format!(
        "PUT /machine-config HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    ).as_bytes());
    assert_eq!(client.receive(), Some((100, Value::Null)));
    client.send(body.as_bytes());
    assert_eq!(client.receive(), Some((204, Value::Null)));
}

#[test]
fn what_is_no_request_ends_its_connection_and_no_other() {
    let bench = Bench::new();
    let mut other = bench.client();
    let long = "x".repeat(51_201);
    for (bytes, status) in [
        (b"nonsense\r\n\r\n".to_vec(), 400),
        (request("POST", "/", "{}"), 400),
        (request("PUT", "/vsock", &long), 413),
        (
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            501,
        ),
        (vec![b'x'; 9000], 400),
    ] {
        let mut client = bench.client();
        client.send(&bytes);
        let (said, answer) = client.receive().unwrap();
        assert_eq!(said, status, "{answer}");
        assert!(answer["fault_message"].is_string(), "{answer}");
        assert_eq!(client.receive(), None);
        assert_eq!(other.ask("GET", "/", "").0, 200);
    }
    // The longest body is one.
    let spaces = " ".repeat(51_200 - 35);
    let body = format!(r#"{spaces}{{"vcpu_count":2,"mem_size_mib":128}}"#);
    assert_eq!(body.len(), 51_200);
    other.tell("PUT", "/machine-config", &body);
    let mut last = bench.client();
    last.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(last.receive().unwrap().0, 200);
    assert_eq!(last.receive(), None);
}

#[test]
fn there_are_so_many_connections_and_no_more() {
    let bench = Bench::new();
    let mut clients: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| bench.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("GET", "/", "").0, 200);
    }
    let mut late = bench.client();
    let (status, answer) = late.receive().unwrap();
    assert_eq!((status, late.receive()), (503, None), "{answer}");
    // One that has gone makes room, when that has been heard.
    clients.pop();
    loop {
        let mut next = bench.client();
        next.send(&request("GET", "/", ""));
        match next.receive().unwrap().0 {
            200 => break,
            status => assert_eq!(status, 503),
        }
    }
}

#[test]
fn who_takes_no_answers_keeps_nobody_up() {
    let bench = Bench::new();
    let mut greedy = std::os::unix::net::UnixStream::connect(bench.path("api")).unwrap();
    greedy.set_nonblocking(true).unwrap();
    let question = request("GET", "/vm/config", "").repeat(64);
    let mut other = bench.client();
    // Until neither questions nor answers have room, which another is asked
    // between.
    while greedy.write(&question).is_ok() {
        assert_eq!(other.ask("GET", "/", "").0, 200);
    }
    assert_eq!(other.ask("GET", "/", "").0, 200);
}

#[test]
fn a_socket_is_for_its_user_and_goes_with_its_api() {
    let bench = Bench::new();
    let path = bench.path("api");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = Api::listen(&path, "vm-2", false).unwrap_err();
    assert!(matches!(error, ApiError::Listen { .. }));
    ends(bench, &path);

    let bench = Bench::new();
    let mut client = bench.client();
    bench.start(&mut client);
    let path = bench.path("api");
    ends(bench, &path);
}

fn ends(mut bench: Bench, path: &Path) {
    drop(bench.end.take());
    let thread = bench.thread.take().unwrap().join().unwrap();
    assert_eq!(thread.is_some(), bench.guest.told() == ["start 1"]);
    drop(thread);
    assert!(!path.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever one client says, another is answered.
    #[test]
    fn hostile_bytes_are_no_harm(
        pieces in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64),
            Just(request("GET", "/vm/config", "")),
            Just(request("PUT", "/machine-config", r#"{"vcpu_count":2,"mem_size_mib":128}"#)),
            Just(b"PUT /boot-source HTTP/1.1\r\nContent-Length: 9\r\n\r\n{\"a\":".to_vec()),
            Just(b"\r\n".to_vec()),
        ], 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let bench = Bench::new();
        let mut bytes = pieces.concat();
        bytes.truncate(cut.index(bytes.len() + 1));
        let mut hostile = std::os::unix::net::UnixStream::connect(bench.path("api")).unwrap();
        // It may be closed on meanwhile.
        drop(hostile.write_all(&bytes));
        let mut client = bench.client();
        prop_assert_eq!(client.ask("GET", "/", "").0, 200);
        drop(hostile);
        bench.start(&mut client);
        prop_assert_eq!(client.ask("GET", "/", "").0, 200);
    }
}
