//! A runtime of a few lines that needs nothing of a file system: it answers
//! each event with the event and with what it finds around it. A test compiles
//! it to one static file.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

const BASE: &str = "/2018-06-01/runtime/invocation/";

fn call(api: &str, head: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(api).unwrap();
    let length = body.len();
    write!(stream, "{head} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut id, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "lambda-runtime-aws-request-id" => id = value.trim().to_owned(),
                "content-length" => length = value.trim().parse().unwrap(),
                _ => {}
            }
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (id, body)
}

fn listed(folder: &str) -> String {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return String::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names.join(",")
}

fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let api = variable("AWS_LAMBDA_RUNTIME_API");
    loop {
        let (id, event) = call(&api, &format!("GET {BASE}next"), b"");
        let said = std::fs::read_to_string("/opt/said").unwrap_or_default();
        let answer = format!(
            r#"{{"event":{},"program":"{}","handler":"{}","cwd":"{}","task":"{}","opt":"{}","said":"{}","root":"{}","key":"{}","endpoint":"{}"}}"#,
            String::from_utf8(event).unwrap(),
            std::env::args().next().unwrap(),
            variable("_HANDLER"),
            std::env::current_dir().unwrap().display(),
            listed("/var/task"),
            listed("/opt"),
            said.trim(),
            variable("LAMBDA_TASK_ROOT"),
            variable("AWS_ACCESS_KEY_ID"),
            variable("AWS_ENDPOINT_URL_S3"),
        );
        call(&api, &format!("POST {BASE}{id}/response"), answer.as_bytes());
    }
}
