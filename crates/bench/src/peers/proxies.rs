//! Reverse proxies with keep-alive to one upstream, and the upstream.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::context::{Context, Service, free_port};
use crate::procfs::{OnCore, family};
use crate::time::wait_until;

const STARTING: Duration = Duration::from_secs(10);

/// A process, with its own, that serves on an address.
#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    service: Service,
}

impl Proxy {
    /// The processes whose processor time counts.
    pub fn pids(&self) -> Vec<i32> {
        family(self.service.pid()).into_iter().collect()
    }
}

/// This binary as the upstream, on a core if one is named.
///
/// # Errors
/// When it does not come up.
pub fn upstream(context: &Context, core: Option<usize>) -> anyhow::Result<Proxy> {
    let own = std::env::current_exe()?.display().to_string();
    let port = free_port()?;
    started(context, core, port, &own, &["upstream", &port.to_string()])
}

/// This binary with so many threads, each of whose answers takes so many steps
/// of work.
///
/// # Errors
/// When it does not come up.
pub fn working(context: &Context, threads: usize, steps: u64) -> anyhow::Result<Proxy> {
    let own = std::env::current_exe()?.display().to_string();
    let port = free_port()?;
    let words = [port.to_string(), threads.to_string(), steps.to_string()];
    let [port_word, threads, steps] = words.each_ref().map(String::as_str);
    let args = ["upstream", port_word, threads, steps];
    started(context, None, port, &own, &args)
}

/// nginx with one worker, as Debian configures it: with an access log.
///
/// # Errors
/// When it does not come up.
pub fn nginx(context: &Context, core: usize, upstream: SocketAddr) -> anyhow::Result<Proxy> {
    let home = context.home().display();
    let port = free_port()?;
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {home}/nginx-{name};\n"))
        .collect();
    let text = format!(
        "worker_processes 1;\ndaemon off;\nuser root;\npid {home}/nginx.pid;\nerror_log {home}/nginx-error.log;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n{temp}  access_log {home}/nginx-access.log;\n  keepalive_requests 1000000000;\n\
         \x20 upstream up {{ server {upstream}; keepalive 128; keepalive_requests 1000000000; }}\n\
         \x20 server {{\n    listen 127.0.0.1:{port} backlog=4096;\n    location / {{\n      proxy_pass http://up;\n\
         \x20     proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      proxy_set_header Host $host;\n\
         \x20     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         \x20     proxy_set_header X-Forwarded-Proto $scheme;\n    }}\n  }}\n}}\n"
    );
    let file = context.home().join("nginx.conf");
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    started(context, Some(core), port, "nginx", &["-c", &file])
}

/// haproxy with one thread.
///
/// # Errors
/// When it does not come up.
pub fn haproxy(context: &Context, core: usize, upstream: SocketAddr) -> anyhow::Result<Proxy> {
    let port = free_port()?;
    let text = format!(
        "global\n  nbthread 1\n  maxconn 8192\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n\
         \x20 timeout server 60s\n  option forwardfor\n  http-reuse always\nfrontend f\n  bind 127.0.0.1:{port}\n\
         \x20 default_backend b\nbackend b\n  server s {upstream}\n"
    );
    let file = context.home().join("haproxy.cfg");
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    started(context, Some(core), port, "haproxy", &["-db", "-f", &file])
}

fn started(
    context: &Context,
    core: Option<usize>,
    port: u16,
    program: &str,
    args: &[&str],
) -> anyhow::Result<Proxy> {
    let service = {
        let _there = core.map(OnCore::pin).transpose()?;
        context.spawn(program, args)?
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    wait_until(&format!("{program} accepts"), STARTING, || {
        Ok(TcpStream::connect(address).is_ok())
    })?;
    Ok(Proxy { address, service })
}
