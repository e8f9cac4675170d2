//! How an image's wishes and a revision's settings become one process: the
//! rules of Docker and Kubernetes, as pure functions.

use skiff_types::{ContainerSpec, FunctionLaunch, RevisionId};

use crate::error::{ControlError, failed};
use crate::port::ImageConfig;

/// Where programs are looked for when nothing says so (Docker's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// signal(7) numbers that an image can name.
const SIGNALS: [(&str, i32); 15] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("WINCH", 28),
    ("PWR", 30),
];
/// Where a function's runtime finds its events.
const RUNTIME_API: &str = "127.0.0.1:9001";
const SIGTERM: i32 = 15;
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Program and arguments: a command replaces the entrypoint and, with it, the
/// image's arguments; arguments alone replace the image's.
pub(crate) fn args(
    container: &ContainerSpec,
    image: &ImageConfig,
) -> Result<Vec<String>, ControlError> {
    let (program, rest) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (&container.command, &container.args),
        (true, false) => (&image.entrypoint, &container.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let args: Vec<String> = program.iter().chain(rest).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(failed(format!(
            "the image {} names no program to run: give a command",
            container.image
        )));
    }
    Ok(args)
}

/// What a process is told by Skiff.
#[derive(Debug, Default)]
pub(crate) struct Contract {
    /// Wins over the image and the user.
    told: Vec<(&'static str, String)>,
    /// When nobody else says.
    defaults: Vec<(&'static str, String)>,
}

/// Of a service (Knative's container contract).
pub(crate) fn service_contract(revision: &RevisionId, port: u16) -> Contract {
    Contract {
        told: vec![
            ("PORT", port.to_string()),
            ("K_SERVICE", revision.service.to_string()),
            ("K_REVISION", revision.name()),
            ("K_CONFIGURATION", revision.service.to_string()),
        ],
        defaults: Vec::new(),
    }
}

const INITIALIZATION: &str = "AWS_LAMBDA_INITIALIZATION_TYPE";

/// Tells a function why it is initialized, in place of what it was told.
pub(crate) fn tell_initialization(env: &mut [String], function: &FunctionLaunch) {
    let is_meant = |line: &&mut String| {
        let name = line.strip_prefix(INITIALIZATION);
        name.is_some_and(|rest| rest.starts_with('='))
    };
    if let Some(line) = env.iter_mut().find(is_meant) {
        *line = format!("{INITIALIZATION}={}", function.initialization_type());
    }
}

/// Of a function that is run by these words (AWS's defined runtime environment
/// variables). The log stream's name is each instance's own and not known here.
pub(crate) fn function_contract(function: &FunctionLaunch, args: &[String]) -> Contract {
    let spec = &function.spec;
    let mut told = vec![
        ("AWS_LAMBDA_RUNTIME_API", RUNTIME_API.to_owned()),
        ("AWS_LAMBDA_FUNCTION_NAME", spec.name.clone()),
        ("AWS_LAMBDA_FUNCTION_VERSION", spec.version.clone()),
        (
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
            function.memory_mib.to_string(),
        ),
        ("AWS_LAMBDA_LOG_GROUP_NAME", spec.log_group.clone()),
        (INITIALIZATION, function.initialization_type().to_owned()),
        ("AWS_REGION", spec.region().to_owned()),
        ("AWS_DEFAULT_REGION", spec.region().to_owned()),
    ];
    if let Some(handler) = &spec.handler {
        told.push(("_HANDLER", handler.clone()));
    }
    let mut defaults = vec![
        ("LAMBDA_TASK_ROOT", "/var/task".to_owned()),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime".to_owned()),
        ("TZ", ":UTC".to_owned()),
    ];
    // As AWS's emulator has it: of an image, the last argument is the handler.
    if let [_program, .., handler] = args {
        defaults.push(("_HANDLER", handler.clone()));
    }
    Contract { told, defaults }
}

/// The environment: the image's, then the user's, then what Skiff tells, later
/// names winning; `PATH` and `HOME` when nobody set them.
pub(crate) fn env(
    image: &[String],
    user: Vec<(String, String)>,
    contract: Contract,
    home: &str,
) -> Vec<String> {
    let mut env: Vec<(String, String)> = Vec::with_capacity(image.len() + user.len() + 6);
    for line in image {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        set(&mut env, name, value);
    }
    for (name, value) in user {
        set(&mut env, &name, &value);
    }
    for (name, value) in contract.told {
        set(&mut env, name, &value);
    }
    for (name, value) in contract.defaults {
        default(&mut env, name, &value);
    }
    default(&mut env, "PATH", DEFAULT_PATH);
    default(&mut env, "HOME", if home.is_empty() { "/" } else { home });
    let line = |(name, value): (String, String)| format!("{name}={value}");
    env.into_iter().map(line).collect()
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        return;
    }
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}

fn default(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    if !env.iter().any(|(known, _)| known == name) {
        env.push((name.to_owned(), value.to_owned()));
    }
}

/// Absolute; what is relative starts at the root.
pub(crate) fn working_dir(image: &str) -> String {
    if image.starts_with('/') {
        return image.to_owned();
    }
    format!("/{image}")
}

/// Reads `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`; anything else is SIGTERM.
pub(crate) fn stop_signal(text: &str) -> i32 {
    let text = text.trim();
    let known = |number: &i32| (1..=SIGRTMAX).contains(number);
    if let Ok(number) = text.parse::<i32>() {
        return Some(number).filter(known).unwrap_or(SIGTERM);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return *number;
    }
    let from_min = name.strip_prefix("RTMIN").map(|rest| (SIGRTMIN, rest));
    let from_max = name.strip_prefix("RTMAX").map(|rest| (SIGRTMAX, rest));
    let Some((base, rest)) = from_min.or(from_max) else {
        return SIGTERM;
    };
    let offset = if rest.is_empty() { Ok(0) } else { rest.parse() };
    offset
        .ok()
        .and_then(|offset: i32| base.checked_add(offset))
        .filter(|number| (SIGRTMIN..=SIGRTMAX).contains(number))
        .unwrap_or(SIGTERM)
}

#[cfg(test)]
mod tests {
    use skiff_types::{Digest, FunctionSpec, Probe, ProjectId, StartCause};

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_and_arguments_replace_as_in_kubernetes() {
        let check = |command: &str, given: &str, entrypoint: &str, cmd: &str, expect: &str| {
            let container = ContainerSpec {
                name: "main".into(),
                image: "i".into(),
                digest: Digest::from_sha256([0; 32]),
                command: words(command),
                args: words(given),
                env: vec![],
                port: 8080,
                protocol: skiff_types::Protocol::Http1,
                probe: Probe::default(),
                essential: true,
            };
            let image = ImageConfig {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..ImageConfig::default()
            };
            assert_eq!(args(&container, &image).unwrap_or_default(), words(expect));
        };
        check("", "", "e", "c", "e c");
        check("", "a", "e", "c", "e a");
        check("p", "", "e", "c", "p");
        check("p", "a", "e", "c", "p a");
        check("", "", "", "c d", "c d");
        check("", "a b", "", "c", "a b");
        check("", "", "", "", "");
    }

    #[test]
    fn the_environment_is_layered_and_the_contract_wins() {
        let revision = RevisionId::parse(&ProjectId::default_project(), "hello-00003").unwrap();
        let image = ["PATH=/bin", "A=1", "B", "=x"].map(str::to_owned);
        let user = vec![("A".into(), "2=2".into()), ("PORT".into(), "1".into())];
        let env = env(&image, user, service_contract(&revision, 9000), "/home/u");
        assert_eq!(
            env,
            [
                "PATH=/bin",
                "A=2=2",
                "B=",
                "PORT=9000",
                "K_SERVICE=hello",
                "K_REVISION=hello-00003",
                "K_CONFIGURATION=hello",
                "HOME=/home/u"
            ]
        );
        let bare = super::env(&[], vec![], service_contract(&revision, 8080), "");
        assert!(bare.contains(&format!("PATH={DEFAULT_PATH}")));
        assert!(bare.contains(&"HOME=/".to_owned()));
    }

    #[test]
    fn a_function_is_told_what_aws_tells_it() {
        let project = ProjectId::default_project();
        let handler = Some("app.main".to_owned());
        let spec = FunctionSpec {
            handler,
            ..FunctionSpec::default()
        };
        let function = FunctionLaunch {
            spec: spec.complete(&project, &"echo".parse().unwrap()),
            timeout_s: 3,
            memory_mib: 128,
            cause: StartCause::default(),
        };
        let image = ["TZ=:Europe/Berlin".to_owned()];
        let user = vec![
            ("AWS_LAMBDA_RUNTIME_API".into(), "evil:1".into()),
            ("A".into(), "b=c".into()),
        ];
        let args = words("runtime other.main");
        let env = env(&image, user, function_contract(&function, &args), "");
        for line in [
            "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001",
            "AWS_LAMBDA_FUNCTION_NAME=echo",
            "AWS_LAMBDA_FUNCTION_VERSION=$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128",
            "AWS_LAMBDA_LOG_GROUP_NAME=/aws/lambda/echo",
            "AWS_LAMBDA_INITIALIZATION_TYPE=on-demand",
            "_HANDLER=app.main",
            "LAMBDA_TASK_ROOT=/var/task",
            "TZ=:Europe/Berlin",
            "A=b=c",
        ] {
            assert!(env.contains(&line.to_owned()), "{line} is not in {env:?}");
        }
        assert!(!env.iter().any(|line| line.starts_with("PORT=")), "{env:?}");
    }

    #[test]
    fn the_handler_of_an_image_is_its_last_argument() {
        let function = FunctionLaunch {
            spec: FunctionSpec::default(),
            timeout_s: 3,
            memory_mib: 128,
            cause: StartCause::default(),
        };
        let handler = |args: &str, image: &[String]| {
            let contract = function_contract(&function, &words(args));
            let env = env(image, vec![], contract, "");
            let found = env.iter().find_map(|line| line.strip_prefix("_HANDLER="));
            found.map(str::to_owned)
        };
        assert_eq!(handler("node ric.mjs app.main", &[]).unwrap(), "app.main");
        assert_eq!(handler("bootstrap", &[]), None);
        let own = ["_HANDLER=own".to_owned()];
        assert_eq!(handler("bootstrap other", &own).unwrap(), "own");
    }

    #[test]
    fn signals_have_many_names() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("QUIT", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("", 15),
            ("nonsense", 15),
            ("0", 15),
            ("SIGRTMIN-1", 15),
            ("RTMIN+2147483647", 15),
        ] {
            assert_eq!(stop_signal(text), number, "{text}");
        }
        assert_eq!(working_dir(""), "/");
        assert_eq!(working_dir("srv"), "/srv");
    }
}
