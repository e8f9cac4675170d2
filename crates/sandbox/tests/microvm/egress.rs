//! What an instance with a way out reaches, on a made-up host.

use super::*;

/// Nobody announces them: were they ever to leak, they would go nowhere.
const PUBLIC: &str = "11.22.33.44:8000";
const PUBLIC6: &str = "[2d00:11:22::33]:8000";
pub const POOL6: &str = "fd73:6b69:6666::/48";
/// What a host of no instance's reaches: a private network, the clouds'
/// metadata, itself; and what is on no network at all.
const CLOSED: [&str; 6] = [
    "10.9.9.9:8000",
    "169.254.169.254:8000",
    "11.0.0.1:7001",
    "[fd09:9::9]:8000",
    "[2d00:1::1]:7001",
    "127.0.0.1:7001",
];

/// A made-up host, which is a network namespace, with a made-up internet
/// behind it, and a server on each.
pub struct World {
    pub host: String,
    internet: String,
    servers: Vec<Child>,
}

impl World {
    fn new(www: &Path) -> Self {
        let number = skiff_base::random::u32();
        let mut world = Self {
            host: format!("skiff-host-{number}"),
            internet: format!("skiff-internet-{number}"),
            servers: Vec::new(),
        };
        let (host, internet) = (&world.host, &world.internet);
        // Neither end asks for link addresses: both have the same.
        let link = "address 02:00:00:00:00:01 arp off up";
        // By its path: the shell of a small userland has an `ip` of its own.
        let script = format!(
            "set -e
            ip=/usr/sbin/ip
            $ip netns add {host}
            $ip netns add {internet}
            $ip -n {host} link add up0 type veth peer name down0 netns {internet}
            $ip -n {internet} link set lo up
            $ip -n {internet} link set down0 {link}
            for address in 11.22.33.44/32 10.9.9.9/32 169.254.169.254/32; do
              $ip -n {internet} address add $address dev lo
            done
            for address in 2d00:11:22::33/128 fd09:9::9/128; do
              $ip -n {internet} address add $address dev down0 nodad
            done
            $ip -n {internet} route add 11.0.0.1/32 dev down0
            $ip -n {internet} route add 2d00:1::1/128 dev down0
            $ip -n {host} link set lo up
            $ip -n {host} link set up0 {link}
            $ip -n {host} address add 11.0.0.1/32 dev up0
            $ip -n {host} address add 2d00:1::1/128 dev up0 nodad
            $ip -n {host} route add default dev up0
            $ip -n {host} -6 route add default dev up0"
        );
        let made = command("sh").args(["-c", &script]).status().unwrap();
        assert!(made.success(), "the world is not made");
        for (place, port) in [(&world.internet, "8000"), (&world.host, "7001")] {
            let mut server = world.command(place);
            server
                .args(["busybox", "httpd", "-f", "-p", port, "-h"])
                .arg(www);
            world.servers.push(server.spawn().unwrap());
        }
        world
    }

    /// One that runs what is added to it in a namespace.
    pub fn command(&self, namespace: &str) -> Command {
        assert!([self.host.as_str(), &self.internet].contains(&namespace));
        let mut command = command("nsenter");
        command.arg(format!("-n/run/netns/{namespace}"));
        command
    }

    /// The addresses of instances that have a way out.
    fn instances(&self) -> Vec<String> {
        let told = command("ip")
            .args(["-n", &self.host, "-4", "route"])
            .stdout(Stdio::piped())
            .output();
        let told = String::from_utf8(told.unwrap().stdout).unwrap();
        let routes = told.lines().filter(|route| route.contains(" dev sk"));
        let addresses = routes.filter_map(|route| route.split(' ').next());
        addresses.map(str::to_owned).collect()
    }

    /// The host itself reaches it: what keeps an instance from it is Skiff.
    fn is_reached(&self, place: &str) -> bool {
        let mut curl = self.command(&self.host);
        curl.args([
            "curl",
            "--silent",
            "--globoff",
            "--fail",
            "--output",
            "/dev/null",
        ]);
        let status = curl.arg(format!("http://{place}/page")).status();
        status.unwrap().success()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for server in &mut self.servers {
            server.kill().ok();
            server.wait().ok();
        }
        for namespace in [&self.host, &self.internet] {
            command("ip")
                .args(["netns", "del", namespace])
                .status()
                .ok();
        }
    }
}

/// Says of each place how many bytes come from there.
fn fetching(open: &[String], closed: &[String]) -> String {
    // Together they take less than anybody waits for.
    let (long, short) = (patience().as_secs() / 4, patience().as_secs() / 40);
    format!(
        "grep -c : /proc/net/dev
        fetch() {{ echo $2 $(timeout $1 wget -q -O - http://$2/page 2>/dev/null | wc -c); }}
        for place in {}; do fetch {long} $place; done
        for place in {}; do fetch {short} $place; done",
        open.join(" "),
        closed.join(" ")
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_classes_reach_the_internet_and_nothing_else() {
    let Some(files) = guest_files() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    words(folder.path());
    let world = World::new(&folder.path().join("www"));
    for place in std::iter::once(PUBLIC).chain(CLOSED) {
        until("the servers", async || {
            world.is_reached(place).then_some(())
        })
        .await;
    }
    let rig = Rig::start_in(&files, &world);
    let classes = rig.connect().await;
    let mut neighbours = Vec::new();
    for backend in classes.each() {
        let mut spec = rig.spec("exec httpd -f -p 8000 -h /www");
        spec.egress = true;
        let created = within("a neighbour", backend.create(spec)).await.unwrap();
        neighbours.push(created.sandbox);
    }
    let addresses = world.instances();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let others = addresses.iter().map(|address| format!("{address}:8000"));
    let closed: Vec<String> = CLOSED
        .map(str::to_owned)
        .into_iter()
        .chain(others)
        .collect();
    let open = [PUBLIC, PUBLIC6].map(str::to_owned);
    for backend in classes.each() {
        let all = |open_bytes: &str, links: u32| {
            let open = open.iter().map(|place| format!("{place} {open_bytes}\n"));
            let closed = closed.iter().map(|place| format!("{place} 0\n"));
            format!("{links}\n") + &open.chain(closed).collect::<String>()
        };
        let mut spec = rig.spec(&fetching(&open, &closed));
        spec.egress = true;
        let (out, err, _) = run(backend, spec).await;
        assert_eq!(out, all("100000", 2), "{:?}: {err}", backend.class());
        let (out, err, _) = run(backend, rig.spec(&fetching(&open, &closed))).await;
        assert_eq!(out, all("0", 1), "{:?}: {err}", backend.class());
    }
    for neighbour in neighbours {
        within("its destruction", neighbour.destroy())
            .await
            .unwrap();
    }
    rig.is_empty(&classes).await;
    until("the end of every way out", async || {
        world.instances().is_empty().then_some(())
    })
    .await;
}
