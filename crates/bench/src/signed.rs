//! One caller of AWS's Lambda API: signs each invocation as AWS's clients do,
//! over one connection.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use serde_json::{Value, json};
use skiff_base::{Clock as _, SystemClock};
use skiff_testkit::Server;

use crate::response::{field, parse, receive};
use crate::time::{ms, now, wait_until};

/// How long an invocation may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The field by which an event is handed in and not waited for.
const LATER: (&str, &str) = ("x-amz-invocation-type", "Event");
/// What each function may use.
pub const MEMORY_MIB: u32 = 256;
/// What a server without a region of its own has.
const REGION: &str = "us-east-1";

/// Who may call, and where.
#[derive(Clone, Debug)]
pub struct Door {
    address: SocketAddr,
    key: String,
    secret: String,
}

/// One connection.
#[derive(Debug)]
pub struct Caller<'a> {
    door: &'a Door,
    stream: TcpStream,
    sent: u64,
    /// No two callers sign the same request in a second.
    seed: usize,
}

impl Door {
    /// With a new key of the default project.
    ///
    /// # Errors
    /// When the server listens for no such calls.
    pub fn of(server: &Server) -> anyhow::Result<Self> {
        let key = server.json(&["key", "create", "bench"]);
        let word = |name: &str| key[name].as_str().map(str::to_owned).context("no key");
        Ok(Self {
            address: address_of(server)?,
            key: word("id")?,
            secret: word("secret")?,
        })
    }

    /// With the same key, after the server's start anew.
    ///
    /// # Errors
    /// As those of [`Self::of`].
    pub fn again(&self, server: &Server) -> anyhow::Result<Self> {
        let address = address_of(server)?;
        Ok(Self {
            address,
            ..self.clone()
        })
    }

    /// Of a server that believes every key.
    pub fn open(address: SocketAddr) -> Self {
        Self {
            address,
            key: "test".to_owned(),
            secret: "test".to_owned(),
        }
    }

    /// # Errors
    /// When nobody listens.
    pub fn caller(&self, seed: usize) -> anyhow::Result<Caller<'_>> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Caller {
            door: self,
            stream,
            sent: 0,
            seed,
        })
    }
}

fn address_of(server: &Server) -> anyhow::Result<SocketAddr> {
    let version = server
        .api("GET", "/v1/version", None)
        .context("no answer")?;
    let address = version["lambda"].as_str().context("no lambda.listen")?;
    Ok(address.parse()?)
}

fn invocations(function: &str) -> String {
    format!("/2015-03-31/functions/{function}/invocations")
}

impl Caller<'_> {
    /// Milliseconds from the signed request's first byte out to its answer's
    /// last byte in, which has to be this.
    ///
    /// # Errors
    /// When another one comes, or none.
    pub fn invoke(&mut self, function: &str, event: &str, answer: &str) -> anyhow::Result<f64> {
        let request = self.sign_invoke(function, event)?;
        self.invoke_signed(&request, answer)
    }

    /// A request for [`Self::invoke_signed`], which is good for some minutes.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign_invoke(&mut self, function: &str, event: &str) -> anyhow::Result<Vec<u8>> {
        self.request("POST", &invocations(function), None, event)
    }

    /// As [`Self::invoke`] with what was signed before; once each.
    ///
    /// # Errors
    /// As those of [`Self::invoke`].
    pub fn invoke_signed(&mut self, request: &[u8], answer: &str) -> anyhow::Result<f64> {
        let start = now();
        self.stream.write_all(request)?;
        let bytes = receive(&mut self.stream)?;
        let took = ms(now().since(start));
        let response = parse(&bytes).context("half an answer")?;
        let head = String::from_utf8_lossy(&bytes[..response.length - response.body.len()]);
        ensure!(
            response.status == 200
                && response.body == answer.as_bytes()
                && field(&head, "x-amz-function-error").is_none(),
            "an invocation is answered with {}: {}",
            response.status,
            String::from_utf8_lossy(response.body)
        );
        Ok(took)
    }

    /// Hands an event in, which is then on the server's disk.
    ///
    /// # Errors
    /// When it is not acknowledged.
    pub fn send(&mut self, function: &str, event: &str) -> anyhow::Result<()> {
        let request = self.sign_event(function, event)?;
        self.send_signed(&request)
    }

    /// A request for [`Self::send_signed`], which is good for some minutes.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign_event(&mut self, function: &str, event: &str) -> anyhow::Result<Vec<u8>> {
        self.request("POST", &invocations(function), Some(LATER), event)
    }

    /// As [`Self::send`] with what was signed before; once each.
    ///
    /// # Errors
    /// As those of [`Self::send`].
    pub fn send_signed(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request)?;
        let bytes = receive(&mut self.stream)?;
        let response = parse(&bytes).context("half an answer")?;
        ensure!(
            response.status == 202,
            "an event is acknowledged with {}: {}",
            response.status,
            String::from_utf8_lossy(response.body)
        );
        Ok(())
    }

    /// Makes a function of this code, and waits until it is active.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn create(&mut self, function: &str, code: &Value) -> anyhow::Result<()> {
        self.create_with(function, code, 30)
    }

    /// As [`Self::create`], with a timeout in seconds.
    ///
    /// # Errors
    /// As those of [`Self::create`].
    pub fn create_with(
        &mut self,
        function: &str,
        code: &Value,
        timeout_s: u32,
    ) -> anyhow::Result<()> {
        let mut body = json!({
            "FunctionName": function,
            "Role": "arn:aws:iam::000000000000:role/bench",
            "MemorySize": MEMORY_MIB,
            "Timeout": timeout_s,
        });
        if let (Some(body), Some(code)) = (body.as_object_mut(), code.as_object()) {
            body.extend(code.clone());
        }
        self.ask("POST", "/2015-03-31/functions", &body.to_string())?;
        let path = format!("/2015-03-31/functions/{function}/configuration");
        wait_until("the function is active", PATIENCE, || {
            let told: Value = serde_json::from_str(&self.ask("GET", &path, "")?)?;
            ensure!(told["State"] != "Failed", "{function}: {told}");
            Ok(told["State"] == "Active")
        })
    }

    /// The body of an answer that is a success.
    ///
    /// # Errors
    /// When there is another one, or none.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        let request = self.request(method, path, None, body)?;
        self.stream.write_all(&request)?;
        let bytes = receive(&mut self.stream)?;
        let response = parse(&bytes).context("half an answer")?;
        let text = String::from_utf8_lossy(response.body).into_owned();
        ensure!(
            (200..300).contains(&response.status),
            "{method} {path}: {} {text}",
            response.status
        );
        Ok(text)
    }

    fn request(
        &mut self,
        method: &str,
        path: &str,
        field: Option<(&str, &str)>,
        body: &str,
    ) -> anyhow::Result<Vec<u8>> {
        self.sent += 1;
        let Door {
            address,
            key,
            secret,
        } = self.door;
        let identity = Credentials::from_keys(key, secret, None).into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name("lambda")
            .time(SystemTime::UNIX_EPOCH + Duration::from_millis(SystemClock.unix_ms()))
            .settings(SigningSettings::default())
            .build()?
            .into();
        let host = address.to_string();
        let id = format!("{}-{}", self.seed, self.sent);
        let mut own = vec![
            ("host", host.as_str()),
            ("amz-sdk-invocation-id", id.as_str()),
        ];
        own.extend(field);
        let uri = format!("http://{host}{path}");
        let bytes = SignableBody::Bytes(body.as_bytes());
        let signable = SignableRequest::new(method, &uri, own.iter().copied(), bytes)?;
        let (signed, _) = sign(signable, &params)?.into_parts();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in own.into_iter().chain(signed.headers()) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        Ok((head + body).into_bytes())
    }
}
