//! `skiff kernel`: what microVMs boot. It works on this machine's data folder,
//! whether a server runs on it or not.
//!
//! ```text
//!  root: folders made, what was named opened or copied, the agent read
//!    │   root is left for good
//!    ▼
//!  packages and kernels parsed ▶ examined ▶ kept
//! ```

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;
use skiff_base::chain;
use skiff_guest::{Agent, Files, InstallOptions, InstalledKernel, Kernels, short};

use super::args::{KernelCommand, KernelInstall, KernelPlace, Output};
use super::output;
use crate::server::user::User;
use crate::server::{configuration, home};

/// The agent's program, beside this one.
pub const AGENT: &str = "skiff-agent";
/// The kernel that runs, in place of a path.
const HOST: &str = "host";
/// How a package begins.
const PACKAGE: &[u8] = b"!<arch>\n";

/// `skiff kernel …`.
///
/// # Errors
/// Whatever went wrong, for the user, with its causes.
pub fn execute(command: KernelCommand, shape: Output) -> anyhow::Result<()> {
    match command {
        KernelCommand::Install(args) => install(&args, shape),
        KernelCommand::Ls { place } => {
            let (kernels, agent) = enter(&place)?;
            list(&kernels, &agent, shape)
        }
        KernelCommand::Use { place, kernel } => {
            let (kernels, _) = enter(&place)?;
            show(shape, &kernels.make_default(&kernel)?, "microVMs now boot")
        }
        KernelCommand::Rm { place, kernel } => {
            let (kernels, _) = enter(&place)?;
            show(shape, &kernels.remove(&kernel)?, "removed")
        }
    }
}

/// The kernels of a data folder, without looking at them.
pub fn of_data_dir(data_dir: &Path) -> Kernels {
    Kernels::at(&data_dir.join(home::KERNELS))
}

/// Where kernels are, and who may touch them.
fn place(place: &KernelPlace) -> anyhow::Result<(PathBuf, User)> {
    let config = configuration(place.config.as_deref(), &[])?;
    let user = User::of_server(&config.user)?;
    let data_dir = place.data_dir.clone().unwrap_or(config.data_dir);
    Ok((data_dir, user))
}

/// Leaves root. Makes nothing.
fn enter(args: &KernelPlace) -> anyhow::Result<(Kernels, Found)> {
    let (data_dir, user) = place(args)?;
    let agent = agent(args)?;
    user.become_it()?;
    Ok((of_data_dir(&data_dir), agent))
}

/// An agent, or why there is none.
type Found = Result<Agent, String>;

/// The agent that was named, or the one beside this program, if there is one.
fn agent(args: &KernelPlace) -> anyhow::Result<Found> {
    if let Some(path) = &args.agent {
        return Ok(Ok(Agent::read(path)?));
    }
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let beside = program.with_file_name(AGENT);
    if !beside.exists() {
        return Ok(Err(format!("{} is not there", beside.display())));
    }
    Ok(Agent::read(&beside).map_err(|error| chain(&error).to_string()))
}

fn install(args: &KernelInstall, shape: Output) -> anyhow::Result<()> {
    let (data_dir, user) = place(&args.place)?;
    let agent = agent(&args.place)?;
    let data_dir = home::folder(&data_dir, &user, 0o700)?;
    let folder = data_dir.join(home::KERNELS);
    // As the user from the beginning: the folder is the user's.
    let (kernels, mut files) =
        user.acting(|| Ok((Kernels::open(&folder)?, Files::new(&folder)?)))?;
    let mut options = InstallOptions {
        release: args.release.clone(),
        source: source(&args.sources),
        keep_default: args.keep_default,
    };
    let packages = collect(args, &mut files, &mut options)?;
    user.become_it()?;
    for (path, package) in packages {
        files.add_package(&path, package)?;
    }
    let kernel = kernels.install(&files, &options)?;
    drop(files);
    match &agent {
        Ok(agent) => drop(kernels.boot_files(&kernel, agent)?),
        Err(reason) => output::note(format!("note: microVMs cannot boot it yet: {reason}")),
    }
    for note in &kernel.notes {
        output::note(format!("note: {note}"));
    }
    show(shape, &kernel, "installed")
}

/// Takes what only root may read: copies files, and opens packages without
/// looking into them.
fn collect(
    args: &KernelInstall,
    files: &mut Files,
    options: &mut InstallOptions,
) -> anyhow::Result<Vec<(PathBuf, File)>> {
    let mut packages = Vec::new();
    let mut images = 0;
    for path in &args.sources {
        if path == Path::new(HOST) {
            let release = running()?;
            files.add_folder(Path::new("/"), Some(&release))?;
            options.release.get_or_insert(release);
        } else if path.is_dir() {
            files.add_folder(path, args.release.as_deref())?;
        } else if let Some(package) = open_package(path)? {
            packages.push((path.clone(), package));
        } else {
            images += 1;
            files.add_kernel(path, args.modules.as_deref(), args.kernel_config.as_deref())?;
        }
    }
    if images == 0 && (args.modules.is_some() || args.kernel_config.is_some()) {
        bail!("--modules and --kernel-config belong to a kernel that is a file");
    }
    Ok(packages)
}

/// The release of the kernel that runs, if it can be taken from this machine.
fn running() -> anyhow::Result<String> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let modules = Path::new("/lib/modules").join(&release);
    let images = [
        Path::new("/boot").join(format!("vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ];
    if !images.iter().any(|image| image.is_file()) {
        bail!(
            "the kernel that runs, {release}, is not in {}, as in containers and on machines \
             whose kernel comes from outside: name a package, a folder or a file instead",
            images[0].display()
        );
    }
    if !modules.is_dir() {
        bail!(
            "the kernel that runs, {release}, has no modules in {}: name a package, a folder or \
             a file instead",
            modules.display()
        );
    }
    Ok(release)
}

/// The file, if it begins as a package does.
fn open_package(path: &Path) -> anyhow::Result<Option<File>> {
    let open = || {
        let mut file = File::open(path)?;
        let mut magic = Vec::new();
        (&mut file)
            .take(PACKAGE.len() as u64)
            .read_to_end(&mut magic)?;
        file.rewind()?;
        Ok::<_, std::io::Error>((magic == PACKAGE).then_some(file))
    };
    open().with_context(|| format!("{} cannot be read", path.display()))
}

/// Where a kernel came from, for people.
fn source(sources: &[PathBuf]) -> String {
    let names: Vec<String> = sources
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    names.join(" ")
}

/// A kernel, and whether microVMs can boot it.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    kernel: InstalledKernel,
    ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Row {
    fn new(kernels: &Kernels, kernel: InstalledKernel, agent: &Found) -> Self {
        let reason = match kernels.check(&kernel) {
            Err(error) => Some(chain(&error).to_string()),
            Ok(()) => agent.as_ref().err().cloned(),
        };
        Self {
            kernel,
            ready: reason.is_none(),
            reason,
        }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.kernel.version.clone(),
            short(&self.kernel.hash).to_owned(),
            output::bytes(self.kernel.size_bytes),
            self.kernel.modules.to_string(),
            output::time(self.kernel.installed_unix_ms),
            if self.kernel.default { "yes" } else { "" }.to_owned(),
            if self.ready { "yes" } else { "no" }.to_owned(),
        ]
    }
}

fn list(kernels: &Kernels, agent: &Found, shape: Output) -> anyhow::Result<()> {
    let rows: Vec<Row> = kernels
        .list()?
        .into_iter()
        .map(|kernel| Row::new(kernels, kernel, agent))
        .collect();
    output::show(shape, &rows, |rows| {
        let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
        output::table(
            &[
                "VERSION",
                "HASH",
                "SIZE",
                "MODULES",
                "INSTALLED",
                "DEFAULT",
                "READY",
            ],
            &cells,
        );
        for row in rows {
            if let Some(reason) = &row.reason {
                let version = &row.kernel.version;
                output::note(format!(
                    "note: microVMs cannot boot {version} yet: {reason}"
                ));
            }
        }
    })
}

fn show(shape: Output, kernel: &InstalledKernel, did: &str) -> anyhow::Result<()> {
    output::show(shape, kernel, |kernel| {
        output::line(format!(
            "{did} {} ({}), {}",
            kernel.version,
            short(&kernel.hash),
            output::bytes(kernel.size_bytes)
        ));
    })
}
