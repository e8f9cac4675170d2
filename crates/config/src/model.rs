use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Everything a server can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Images, kernels, state, ledger and logs.
    pub data_dir: PathBuf,
    /// Sockets and locks; gone after a reboot.
    pub run_dir: PathBuf,
    /// Who the server runs as once the launcher is there: an account's name
    /// or a number. Only looked at when it is started as root.
    pub user: String,
    /// The door for requests.
    pub gateway: Gateway,
    /// The door for the operator.
    pub api: Api,
    /// The door for AWS's clients.
    pub lambda: Lambda,
    /// What functions' roles give them, by the roles' ARNs.
    pub roles: BTreeMap<String, Role>,
    /// Where images come from.
    pub images: Images,
    /// What this machine gives.
    pub worker: Worker,
    /// Virtual machines.
    pub microvm: Microvm,
    /// How instances reach the world.
    pub network: Network,
    /// What the bill says.
    pub meter: Meter,
    /// Where the key that encrypts secrets is.
    pub secrets: Secrets,
    /// What the server says of itself.
    pub log: Log,
}

/// The door for requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Addresses it listens on.
    pub listen: Vec<SocketAddr>,
    /// Services are `NAME.DOMAIN`.
    pub domain: String,
    /// Threads that serve; 0 is one for each CPU.
    pub threads: usize,
    /// A line for each request, in the server's log folder.
    pub access_log: bool,
    /// How long a request may be expected to wait, milliseconds, while more
    /// is offered than its revision can take; 0 is no bound.
    pub overload_wait_ms: u32,
    /// A proxy stands in front, whose `Forwarded` and `X-Forwarded-*` are true.
    pub trust_forwarded: bool,
}

/// The door for the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Who else than the server's own user may open the Unix socket: a
    /// group's name or number. Empty is nobody.
    pub group: String,
    /// An address to listen on besides the socket, with bearer tokens.
    pub listen: Option<SocketAddr>,
    /// The certificate chain for `listen`, PEM.
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub tls_key: Option<PathBuf>,
}

/// The door for AWS's clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lambda {
    /// An address for AWS Lambda's API; absent serves none.
    pub listen: Option<SocketAddr>,
    /// The region that signatures and ARNs name.
    pub region: String,
    /// Whether functions that are made over it reach the public internet.
    pub egress: bool,
    /// Event invocations.
    pub events: LambdaEvents,
    /// Images of runtimes by their names, before AWS's own.
    pub runtimes: BTreeMap<String, String>,
    /// Where functions' code is fetched from.
    pub s3: S3,
}

/// How event invocations are kept, tried and told on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LambdaEvents {
    /// From a function's first error to the next try, milliseconds; twice as
    /// long after the second.
    pub retry_ms: u64,
    /// From the first time that nothing takes an event to the next try,
    /// milliseconds; doubles up to 300 times as long.
    pub backoff_ms: u64,
    /// Events of one function that are not done.
    pub per_function: usize,
    /// Events under way of one function.
    pub at_once: u32,
    /// Payloads of all events that are not done, bytes.
    pub bytes: u64,
    /// What the URL of a destination may begin with.
    pub destinations: Vec<String>,
    /// Where queues of SQS's kind are; absent refuses them as destinations.
    pub sqs_endpoint: Option<String>,
    /// The access key there.
    pub sqs_access_key: Option<String>,
    /// The file with its secret.
    pub sqs_secret_file: Option<PathBuf>,
    /// Where streams of DynamoDB's kind are; absent refuses them as sources.
    pub dynamodb_endpoint: Option<String>,
    /// The access key there.
    pub dynamodb_access_key: Option<String>,
    /// The file with its secret.
    pub dynamodb_secret_file: Option<PathBuf>,
}

/// An S3-compatible store of objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// Its URL; absent is none.
    pub endpoint: Option<String>,
    /// The region that requests to it are signed for.
    pub region: String,
    /// The key that signs them; absent signs none.
    pub access_key_id: Option<String>,
    /// A file with that key's secret.
    pub secret_access_key_file: Option<PathBuf>,
}

/// A function's role: credentials, and where AWS's services are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Role {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: Option<String>,
    /// A file with `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key_file: Option<PathBuf>,
    /// A file with `AWS_SESSION_TOKEN`.
    pub session_token_file: Option<PathBuf>,
    /// URLs of services: `s3` becomes `AWS_ENDPOINT_URL_S3`, and `all`
    /// `AWS_ENDPOINT_URL`.
    pub endpoints: BTreeMap<String, String>,
}

impl Role {
    fn check(&self, arn: &str) -> Result<(), String> {
        let parts: Vec<&str> = arn.split(':').collect();
        let account = |text: &str| text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
        if !matches!(parts[..], ["arn", _, "iam", "", id, role] if account(id) && role.starts_with("role/"))
        {
            return Err(format!(
                "`{arn}` is not a role's ARN as arn:aws:iam::000000000001:role/app is"
            ));
        }
        if self.access_key_id.is_some() != self.secret_access_key_file.is_some()
            || (self.session_token_file.is_some() && self.access_key_id.is_none())
        {
            return Err(format!(
                "{arn}: access_key_id and secret_access_key_file belong together, and session_token_file to both"
            ));
        }
        let name = |name: &str| {
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            !name.is_empty() && name.bytes().all(good)
        };
        for (service, url) in &self.endpoints {
            if !name(service) || !(url.starts_with("http://") || url.starts_with("https://")) {
                return Err(format!(
                    "{arn}: the endpoint {service} is not as s3 = \"https://s3.example\" is"
                ));
            }
        }
        Ok(())
    }
}

/// Where images come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Registries spoken to without TLS, `HOST` or `HOST:PORT`.
    pub plain_http: Vec<String>,
}

/// What this machine gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// Memory for instances, MiB; 0 is what the machine has, less an eighth.
    pub memory_mib: u64,
    /// Processor time for instances, thousandths of a CPU; 0 is all CPUs.
    pub cpu_millis: u64,
    /// Instances' memory may sum up to this many times what there is.
    pub memory_overcommit: f64,
    /// Instances' processor time may sum up to this many times what there is.
    pub cpu_overcommit: f64,
    /// Instances may be started at once.
    pub starts_at_once: usize,
    /// Network namespaces prepared ahead.
    pub prepared_networks: u32,
    /// Whether revisions may ask for the isolation `null`, which runs
    /// nothing and answers every request itself: for measuring.
    pub allow_null: bool,
    /// Bytes of logs kept of one service.
    pub log_bytes_per_service: u64,
}

/// Virtual machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Microvm {
    /// From a monitor's start to its guest's first word, seconds. A machine
    /// that takes longer, in the trial or later, is booted once more and then given up.
    pub boot_timeout_s: u32,
    /// A monitor that speaks Firecracker's API, in place of Skiff's own.
    pub monitor: Option<PathBuf>,
    /// Monitors that are started before their machines are known, at most 64.
    pub warm: u32,
}

/// How instances reach the world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Addresses of instances with egress; every server on the host takes
    /// a part of its own.
    pub pool: IpNet,
    /// Whether instances with egress have IPv6, too.
    pub ipv6: bool,
    /// Their IPv6 addresses: these first bits, and their IPv4 address.
    pub ipv6_pool: ipnet::Ipv6Net,
    /// Private networks that instances with egress may reach all the same.
    pub allow: Vec<ipnet::IpNet>,
    /// Whom the DNS forwarder asks; empty is what the host asks.
    pub dns: Vec<IpAddr>,
}

/// What the bill says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Meter {
    /// The unit of the prices.
    pub currency: String,
    /// The prices.
    pub prices: Prices,
}

/// What things cost, in the meter's currency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// A million requests.
    pub million_requests: f64,
    /// A GiB of an instance's memory for an hour.
    pub gib_hour: f64,
    /// A CPU used for an hour.
    pub cpu_hour: f64,
    /// A GiB sent to clients.
    pub gib_out: f64,
}

/// Where the key that encrypts secrets is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// The file with the key; made when it is not there. Absent is the
    /// systemd credential `skiff-secrets-key`, else `/etc/skiff/secrets.key`.
    pub key_file: Option<PathBuf>,
}

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter as
    /// `skiff_gateway=debug,info`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the server's own log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A unique local network (RFC 4193) of nobody else's; it never leaves the
/// host.
const IPV6_POOL: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6b69, 0x6666, 0, 0, 0, 0, 0);
/// Networks that addresses for instances may be of: unique local and global.
const IPV6_RANGES: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3),
];

/// An IPv4 network in prefix notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpNet {
    /// Its first address.
    pub address: Ipv4Addr,
    /// Bits that name the network.
    pub prefix: u8,
}

impl FromStr for IpNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "`{text}` is not an IPv4 network: ADDRESS/PREFIX with a prefix of 8 to 24 is expected"
            )
        };
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse())?;
        let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        if !(8..=24).contains(&prefix) || address.to_bits() & host_bits != 0 {
            return Err(refuse());
        }
        Ok(Self { address, prefix })
    }
}

impl TryFrom<String> for IpNet {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<IpNet> for String {
    fn from(net: IpNet) -> Self {
        format!("{}/{}", net.address, net.prefix)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/skiff".into(),
            run_dir: "/run/skiff".into(),
            user: "62914".to_owned(),
            gateway: Gateway::default(),
            api: Api::default(),
            lambda: Lambda::default(),
            roles: BTreeMap::new(),
            images: Images::default(),
            worker: Worker::default(),
            microvm: Microvm::default(),
            network: Network::default(),
            meter: Meter::default(),
            secrets: Secrets::default(),
            log: Log::default(),
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))],
            domain: "skiff.localhost".to_owned(),
            threads: 0,
            access_log: false,
            overload_wait_ms: 300,
            trust_forwarded: false,
        }
    }
}

impl Default for Lambda {
    fn default() -> Self {
        Self {
            listen: None,
            region: "us-east-1".to_owned(),
            egress: false,
            events: LambdaEvents::default(),
            runtimes: BTreeMap::new(),
            s3: S3::default(),
        }
    }
}

impl Default for LambdaEvents {
    fn default() -> Self {
        Self {
            retry_ms: 60_000,
            backoff_ms: 1000,
            per_function: 100_000,
            at_once: 50,
            bytes: 1 << 30,
            destinations: Vec::new(),
            sqs_endpoint: None,
            sqs_access_key: None,
            sqs_secret_file: None,
            dynamodb_endpoint: None,
            dynamodb_access_key: None,
            dynamodb_secret_file: None,
        }
    }
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: None,
            secret_access_key_file: None,
        }
    }
}

impl S3 {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let url = |text: &String| text.starts_with("http://") || text.starts_with("https://");
        if !self.endpoint.iter().all(url) {
            return Err((
                "lambda.s3.endpoint",
                "is not a URL as https://s3.example is".to_owned(),
            ));
        }
        if self.access_key_id.is_some() != self.secret_access_key_file.is_some() {
            return Err((
                "lambda.s3.secret_access_key_file",
                "and lambda.s3.access_key_id belong together: one is missing".to_owned(),
            ));
        }
        Ok(())
    }
}

impl Default for Microvm {
    fn default() -> Self {
        Self {
            boot_timeout_s: 10,
            monitor: None,
            warm: 2,
        }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            memory_mib: 0,
            cpu_millis: 0,
            memory_overcommit: 1.0,
            cpu_overcommit: 10.0,
            starts_at_once: 64,
            prepared_networks: 32,
            allow_null: false,
            log_bytes_per_service: 64 * 1024 * 1024,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            pool: IpNet {
                address: Ipv4Addr::new(100, 96, 0, 0),
                prefix: 16,
            },
            ipv6: false,
            ipv6_pool: ipnet::Ipv6Net::new_assert(IPV6_POOL, 48),
            allow: Vec::new(),
            dns: Vec::new(),
        }
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            currency: "USD".to_owned(),
            prices: Prices::default(),
        }
    }
}

impl Default for Prices {
    fn default() -> Self {
        Self {
            million_requests: 0.20,
            gib_hour: 0.0050,
            cpu_hour: 0.0400,
            gib_out: 0.0,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

impl Config {
    /// The operator's socket.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.run_dir.join("skiff.sock")
    }

    /// What no single field can tell.
    ///
    /// # Errors
    /// The key, and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.gateway.listen.is_empty() {
            return Err((
                "gateway.listen",
                "is empty: at least one address is expected".to_owned(),
            ));
        }
        if !is_domain(&self.gateway.domain) {
            return Err((
                "gateway.domain",
                format!("`{}` is not a domain in lower case", self.gateway.domain),
            ));
        }
        if self.api.tls_certificate.is_some() != self.api.tls_key.is_some() {
            return Err((
                "api.tls_key",
                "and api.tls_certificate belong together: one is missing".to_owned(),
            ));
        }
        if let Some(listen) = self.api.listen
            && !listen.ip().is_loopback()
            && self.api.tls_key.is_none()
        {
            return Err((
                "api.listen",
                format!(
                    "{listen} is not a loopback address: set api.tls_certificate and api.tls_key"
                ),
            ));
        }
        if !is_region(&self.lambda.region) {
            return Err((
                "lambda.region",
                format!("`{}` is not a region as us-east-1 is", self.lambda.region),
            ));
        }
        self.lambda.events.check()?;
        self.lambda.s3.check()?;
        for (arn, role) in &self.roles {
            role.check(arn).map_err(|message| ("roles", message))?;
        }
        for (key, factor) in [
            ("worker.memory_overcommit", self.worker.memory_overcommit),
            ("worker.cpu_overcommit", self.worker.cpu_overcommit),
        ] {
            if !(0.1..=1000.0).contains(&factor) {
                return Err((
                    key,
                    format!("is {factor}: between 0.1 and 1000 is expected"),
                ));
            }
        }
        if self.worker.starts_at_once == 0 {
            return Err((
                "worker.starts_at_once",
                "is 0: at least 1 is expected".to_owned(),
            ));
        }
        self.network.check()?;
        let p = &self.meter.prices;
        for (key, price) in [
            ("meter.prices.million_requests", p.million_requests),
            ("meter.prices.gib_hour", p.gib_hour),
            ("meter.prices.cpu_hour", p.cpu_hour),
            ("meter.prices.gib_out", p.gib_out),
        ] {
            if !price.is_finite() || price < 0.0 {
                return Err((key, format!("is {price}: a price of 0 or more is expected")));
            }
        }
        Ok(())
    }
}

impl LambdaEvents {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let wait_ms_max = 24 * 3600 * 1000;
        for (key, value, most) in [
            ("lambda.events.retry_ms", self.retry_ms, wait_ms_max),
            ("lambda.events.backoff_ms", self.backoff_ms, wait_ms_max),
            (
                "lambda.events.per_function",
                self.per_function as u64,
                1 << 20,
            ),
            ("lambda.events.at_once", self.at_once.into(), 1000),
            ("lambda.events.bytes", self.bytes, 1 << 50),
        ] {
            if !(1..=most).contains(&value) {
                return Err((key, format!("is {value}: 1 to {most} is expected")));
            }
        }
        let is_web = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        for (key, url) in self
            .destinations
            .iter()
            .map(|url| ("lambda.events.destinations", url))
            .chain(
                self.sqs_endpoint
                    .iter()
                    .map(|url| ("lambda.events.sqs_endpoint", url)),
            )
            .chain(
                self.dynamodb_endpoint
                    .iter()
                    .map(|url| ("lambda.events.dynamodb_endpoint", url)),
            )
        {
            if !is_web(url) {
                return Err((key, format!("`{url}` is not an http(s) URL")));
            }
        }
        let has_key = self.sqs_access_key.is_some() && self.sqs_secret_file.is_some();
        if self.sqs_endpoint.is_some() && !has_key {
            return Err((
                "lambda.events.sqs_endpoint",
                "needs lambda.events.sqs_access_key and lambda.events.sqs_secret_file".to_owned(),
            ));
        }
        let has_key = self.dynamodb_access_key.is_some() && self.dynamodb_secret_file.is_some();
        if self.dynamodb_endpoint.is_some() && !has_key {
            return Err((
                "lambda.events.dynamodb_endpoint",
                "needs lambda.events.dynamodb_access_key and lambda.events.dynamodb_secret_file"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

impl Network {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let pool = self.ipv6_pool;
        let (address, prefix) = (pool.addr(), pool.prefix_len());
        let ranges = IPV6_RANGES.map(|(range, prefix)| ipnet::Ipv6Net::new_assert(range, prefix));
        if !(32..=96).contains(&prefix)
            || pool.network() != address
            || !ranges.iter().any(|range| range.contains(&address))
        {
            let message = format!(
                "{pool} is not a network for instances: a unique local (fc00::/7) or global (2000::/3) ADDRESS/PREFIX with a prefix of 32 to 96 is expected"
            );
            return Err(("network.ipv6_pool", message));
        }
        let everything = |net: &&ipnet::IpNet| net.prefix_len() == 0;
        if let Some(net) = self.allow.iter().find(everything) {
            let message = format!("{net} is everything: networks are expected");
            return Err(("network.allow", message));
        }
        Ok(())
    }
}

fn is_region(text: &str) -> bool {
    let good = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=32).contains(&text.len()) && text.bytes().all(good)
}

fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 180
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        })
}
