//! A static HTTP/1.1 server that does what a test asks of it.
//!
//! It stands for a user's application: it knows nothing of Skiff, listens on
//! `PORT`, and uses nothing but the standard library, so that an image of it
//! is one file. `skiff-h2app` beside it is the same for HTTP/2. `testapp CODE` exits with that code instead of serving.
//!
//! | path | what it does |
//! |---|---|
//! | `/` | answers `hello` and the revision |
//! | `/env/NAME` | that variable's value |
//! | `/headers` | the request's head as it arrived |
//! | `/echo` | the request's body |
//! | `/sleep/MS` | answers after so long |
//! | `/stream/COUNT/MS` | so many chunks, so long apart |
//! | `/bytes/COUNT` | a body of so many bytes |
//! | `/allocate/MIB` | touches so much memory and keeps it |
//! | `/burn/MS` | uses processor time for so long |
//! | `/threads/COUNT` | has so many threads at once; answers how many came to be |
//! | `/write/PATH/KIB` | writes a file under `/PATH` (`,` for `/`); answers the error, if any |
//! | `/connect/HOST/PORT` | tries a TCP connection; answers what came of it |
//! | `/resolve/NAME` | looks a name up |
//! | `/get/HOST/PORT/PATH` | an HTTP request from inside (`,` for `/`) |
//! | `/exit/CODE`, `/abort` | ends the process |
//! | `/hang` | answers this, and nothing any more |
//! | `/log/TEXT` | writes a line to standard output and one to standard error |
//! | `/requests` | how many requests this process has had |
//! | `/upgrade` | with `Upgrade:`, switches protocols and echoes bytes |

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static HANGS: AtomicBool = AtomicBool::new(false);
static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
const HEAD_BYTES_MAX: usize = 64 * 1024;

struct Request {
    method: String,
    path: String,
    head: String,
    body: Vec<u8>,
    upgrade: bool,
    close: bool,
}

fn main() {
    if let Some(code) = std::env::args().nth(1).and_then(|text| text.parse().ok()) {
        log("leaving as told");
        std::process::exit(code);
    }
    let port = std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(8080u16);
    if let Some(wait) = std::env::var("START_DELAY_MS")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        thread::sleep(Duration::from_millis(wait));
    }
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            log(&format!("port {port} cannot be bound: {error}"));
            std::process::exit(1);
        }
    };
    log(&format!("listening on {port}"));
    for stream in listener.incoming().flatten() {
        // Without room for a thread the connection closes, and nothing else.
        let _no_room = thread::Builder::new().spawn(move || {
            // A client that breaks off ends its own thread and nothing else.
            let _broken_off = serve(stream);
        });
    }
}

fn log(text: &str) {
    let mut out = std::io::stdout().lock();
    let _gone = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader, &mut writer)? {
        REQUESTS.fetch_add(1, Ordering::SeqCst);
        while HANGS.load(Ordering::SeqCst) {
            thread::park();
        }
        if request.upgrade && request.path == "/upgrade" {
            return echo_forever(reader, writer);
        }
        answer(&request, &mut writer)?;
        if request.close {
            break;
        }
    }
    Ok(())
}

fn read_request(
    reader: &mut BufReader<TcpStream>,
    writer: &mut TcpStream,
) -> std::io::Result<Option<Request>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head)? == 0 || head.len() > HEAD_BYTES_MAX {
            return Ok(None);
        }
        if &head[before..] == "\r\n" {
            break;
        }
    }
    let field = |name: &str| {
        head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    if field("expect").is_some() {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let length = field("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let chunked =
        field("transfer-encoding").is_some_and(|value| value.to_lowercase().contains("chunked"));
    let body = if chunked {
        read_chunks(reader)?
    } else {
        read_exact(reader, length)?
    };
    let mut words = head.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or("/").to_owned();
    let close = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let upgrade = field("upgrade").is_some();
    Ok(Some(Request {
        method,
        path,
        body,
        upgrade,
        close,
        head,
    }))
}

fn read_exact(reader: &mut impl Read, length: usize) -> std::io::Result<Vec<u8>> {
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn read_chunks(reader: &mut BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length =
            usize::from_str_radix(line.trim().split(';').next().unwrap_or("0"), 16).unwrap_or(0);
        if length > 0 {
            body.extend(read_exact(reader, length)?);
        }
        let mut end = String::new();
        reader.read_line(&mut end)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

fn echo_forever(mut reader: BufReader<TcpStream>, mut writer: TcpStream) -> std::io::Result<()> {
    writer.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
    )?;
    let mut buffer = [0; 4096];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        writer.write_all(&buffer[..count])?;
    }
}

fn answer(request: &Request, writer: &mut TcpStream) -> std::io::Result<()> {
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    let number = |index: usize| {
        parts
            .get(index)
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let word = |index: usize| parts.get(index).copied().unwrap_or_default().to_owned();
    let size = usize::try_from(number(1)).unwrap_or(0);
    let body: Vec<u8> = match parts[0] {
        "env" => std::env::var(word(1)).unwrap_or_default().into_bytes(),
        "headers" => request.head.clone().into_bytes(),
        "echo" => request.body.clone(),
        "sleep" => {
            thread::sleep(Duration::from_millis(number(1)));
            b"slept\n".to_vec()
        }
        "stream" => return stream_chunks(writer, number(1), number(2)),
        "bytes" => vec![b'x'; size],
        "allocate" => allocate(size),
        "burn" => burn(number(1)),
        "threads" => start_threads(number(1)),
        "write" => write_file(&word(1), number(2)),
        "connect" => connect(&word(1), &word(2)),
        "resolve" => resolve(&word(1)),
        "get" => get(&word(1), &word(2), &word(3)),
        "exit" => std::process::exit(i32::try_from(number(1)).unwrap_or(1)),
        "abort" => std::process::abort(),
        "hang" => {
            HANGS.store(true, Ordering::SeqCst);
            b"hanging\n".to_vec()
        }
        "log" => {
            log(&word(1));
            eprint_line(&word(1));
            b"logged\n".to_vec()
        }
        "requests" => format!("{}\n", REQUESTS.load(Ordering::SeqCst)).into_bytes(),
        _ => format!(
            "hello from {}\n",
            std::env::var("K_REVISION").unwrap_or_default()
        )
        .into_bytes(),
    };
    let mut reply =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    if request.method != "HEAD" {
        reply.extend(body);
    }
    writer.write_all(&reply)
}

fn eprint_line(text: &str) {
    let mut out = std::io::stderr().lock();
    let _gone = writeln!(out, "{text}");
}

fn stream_chunks(writer: &mut TcpStream, count: u64, wait_ms: u64) -> std::io::Result<()> {
    writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for index in 0..count {
        let text = format!("chunk {index}\n");
        writer.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())?;
        thread::sleep(Duration::from_millis(wait_ms));
    }
    writer.write_all(b"0\r\n\r\n")
}

fn allocate(mib: usize) -> Vec<u8> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..mib {
        // Every page is written, or the kernel would not count it.
        kept.push(vec![1; 1 << 20]);
    }
    format!("{} MiB\n", kept.len()).into_bytes()
}

fn burn(ms: u64) -> Vec<u8> {
    let mut sum = 0u64;
    let end = thread::spawn(move || thread::sleep(Duration::from_millis(ms)));
    while !end.is_finished() {
        for index in 0..100_000u64 {
            sum = std::hint::black_box(sum.wrapping_add(index));
        }
    }
    b"burnt\n".to_vec()
}

fn start_threads(count: u64) -> Vec<u8> {
    let (end, ended) = std::sync::mpsc::sync_channel::<()>(0);
    let ended = std::sync::Arc::new(Mutex::new(ended));
    let started: Vec<_> = (0..count)
        .map_while(|_| {
            let ended = std::sync::Arc::clone(&ended);
            let thread = thread::Builder::new().stack_size(64 * 1024);
            let sleeps = move || {
                let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                let _over = ended.recv();
            };
            thread.spawn(sleeps).ok()
        })
        .collect();
    let count = started.len();
    drop(end);
    // The answer comes when they are gone: who asks next finds room for a thread.
    for thread in started {
        let _panicked = thread.join();
    }
    format!("{count}\n").into_bytes()
}

fn write_file(path: &str, kib: u64) -> Vec<u8> {
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(format!("/{}", path.replace(',', "/")))?;
        (0..kib).try_for_each(|_| file.write_all(&[7; 1024]))
    };
    match write() {
        Ok(()) => b"written\n".to_vec(),
        Err(error) => format!("{error}\n").into_bytes(),
    }
}

fn connect(host: &str, port: &str) -> Vec<u8> {
    let attempt = || -> std::io::Result<()> {
        let mut addresses = format!("{host}:{port}").to_socket_addrs()?;
        let address = addresses.next().ok_or(std::io::ErrorKind::NotFound)?;
        TcpStream::connect_timeout(&address, Duration::from_secs(3)).map(drop)
    };
    match attempt() {
        Ok(()) => b"connected\n".to_vec(),
        Err(error) => format!("{error}\n").into_bytes(),
    }
}

fn resolve(name: &str) -> Vec<u8> {
    match (name, 80).to_socket_addrs() {
        Ok(addresses) => {
            let texts: Vec<String> = addresses.map(|address| address.ip().to_string()).collect();
            format!("{}\n", texts.join(" ")).into_bytes()
        }
        Err(error) => format!("{error}\n").into_bytes(),
    }
}

fn get(host: &str, port: &str, path: &str) -> Vec<u8> {
    let attempt = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(format!("{host}:{port}"))?;
        let path = path.replace(',', "/");
        stream.write_all(
            format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        Ok(reply)
    };
    attempt().unwrap_or_else(|error| format!("{error}\n").into_bytes())
}
