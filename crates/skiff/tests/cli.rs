//! What the binary says when it cannot do what was typed.
//!
//! Being a test of this package, it also has the binary built that the
//! end-to-end tests drive.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use skiff_testkit::run;

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");

#[test]
fn the_version_is_the_packages() {
    let said = run(SKIFF, ["--version"]).ok();
    assert_eq!(said.trim(), concat!("skiff ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_command_explains_itself() {
    let help = run(SKIFF, ["--help"]).ok();
    for command in [
        "run", "deploy", "apply", "ls", "describe", "traffic", "rollback", "scale", "rm", "logs",
        "trace", "usage", "image", "kernel", "project", "secret", "token", "doctor", "server",
    ] {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "--help lacks {command}"
        );
        assert!(
            run(SKIFF, [command, "--help"])
                .ok()
                .contains("Usage: skiff"),
            "{command}"
        );
    }
    assert!(!help.contains("launcher"), "the launcher is not for people");
}

#[test]
fn a_server_that_is_not_there_is_one_line_with_what_to_do() {
    let error = run(SKIFF, ["ls", "--host", "unix:///nowhere/skiff.sock"]).failed();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(
        error.starts_with("skiff: the server at unix:///nowhere/skiff.sock does not answer"),
        "{error}"
    );
    assert!(error.contains("skiff server"), "{error}");
}

#[test]
fn a_wrong_setting_stops_the_server_before_it_does_anything() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let set = format!("data_dir={}", data.display());
    let error = run(
        SKIFF,
        ["server", "--set", &set, "--set", "gateway.threads=many"],
    )
    .failed();
    assert!(
        error.starts_with("skiff: the flag --set gateway.threads=many, gateway.threads: "),
        "{error}"
    );
    assert!(!data.exists());
}

#[test]
fn a_manifest_that_is_wrong_names_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services.toml");
    std::fs::write(&file, "[[services]]\nname = 'a'\nimage = 'a:1'\nport = 0\n").unwrap();
    let error = run(
        SKIFF,
        ["apply".as_ref(), "--file".as_ref(), file.as_os_str()],
    )
    .failed();
    assert!(error.contains("services.toml: line 4:"), "{error}");
}
