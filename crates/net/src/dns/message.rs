//! What is said to a query, as a pure function of its bytes.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// The largest answer over UDP (DNS flag day 2020): it needs no fragments.
pub(crate) const UDP_MAX: u16 = 1232;
/// Of a client that does not say (RFC 1035 § 2.3.4).
const UDP_DEFAULT: u16 = 512;
const HEADER_LEN: usize = 12;
/// A query has one name and perhaps options.
pub(crate) const QUERY_MAX: usize = 1024;
/// Seconds for which an internal name may be remembered.
const INTERNAL_TTL: u32 = 5;
/// The zone of a project's services.
const INTERNAL: [&str; 2] = ["skiff", "internal"];
/// Zones about this machine and its network (RFC 6303, RFC 6761, RFC 6762,
/// RFC 7686): what an upstream resolver would say of them is no instance's
/// business.
const LOCAL: [&str; 16] = [
    "local",
    "localhost",
    "invalid",
    "onion",
    "home.arpa",
    "10.in-addr.arpa",
    "168.192.in-addr.arpa",
    "254.169.in-addr.arpa",
    // ::/8 with loopback and IPv4 in IPv6.
    "0.0.ip6.arpa",
    "c.f.ip6.arpa",
    "d.f.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
    "8.b.d.0.1.0.0.2.ip6.arpa",
];

/// How a query goes on.
#[derive(Debug)]
pub(crate) enum Plan {
    /// It is not one; nothing is said.
    Ignore,
    /// This is the answer.
    Answer(Vec<u8>),
    /// An upstream resolver knows.
    Forward(Question),
}

/// A query that goes upstream.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    id: u16,
    query: Query,
    /// The client's largest UDP answer and its wish for signatures.
    edns: Option<(u16, bool)>,
}

/// Decides about a query. `lookup` knows the project's services.
pub(crate) fn plan(bytes: &[u8], egress: bool, lookup: impl Fn(&str) -> Option<Ipv4Addr>) -> Plan {
    if bytes.len() > QUERY_MAX {
        return Plan::Ignore;
    }
    let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else {
        return Plan::Ignore;
    };
    let metadata = header.metadata;
    if metadata.message_type != MessageType::Query {
        // An answer to an answer could go on for ever.
        return Plan::Ignore;
    }
    if metadata.op_code != OpCode::Query {
        return refuse(metadata.id, metadata.op_code, ResponseCode::NotImp);
    }
    let one_query = Message::from_vec(bytes).ok().and_then(|mut message| {
        let query = message.queries.pop()?;
        message.queries.is_empty().then_some((message, query))
    });
    let Some((message, query)) = one_query else {
        return refuse(metadata.id, OpCode::Query, ResponseCode::FormErr);
    };
    answer(&message, query, egress, lookup)
}

fn answer(
    message: &Message,
    query: Query,
    egress: bool,
    lookup: impl Fn(&str) -> Option<Ipv4Addr>,
) -> Plan {
    let reply = Reply { message, query };
    let zone_transfers = [RecordType::ANY, RecordType::AXFR, RecordType::IXFR];
    if reply.query.query_class != DNSClass::IN || zone_transfers.contains(&reply.query.query_type) {
        return reply.code(ResponseCode::Refused);
    }
    let labels = labels(&reply.query.name);
    if let Some(labels) = labels.strip_suffix(&INTERNAL.map(str::to_owned)) {
        let address = match labels {
            [name] => lookup(name),
            _ => None,
        };
        return reply.internal(address);
    }
    // NXDOMAIN rather than REFUSED, upon which musl waits for its timeout.
    if !egress || is_local(&labels) {
        return reply.code(ResponseCode::NXDomain);
    }
    let edns = message.edns.as_ref();
    Plan::Forward(Question {
        id: message.metadata.id,
        edns: edns.map(|edns| (edns.max_payload(), edns.flags().dnssec_ok)),
        query: reply.query,
    })
}

struct Reply<'a> {
    message: &'a Message,
    query: Query,
}

impl Reply<'_> {
    fn code(self, code: ResponseCode) -> Plan {
        self.records(code, None)
    }

    /// An internal name has an A record or does not exist.
    fn internal(self, address: Option<Ipv4Addr>) -> Plan {
        let Some(address) = address else {
            return self.code(ResponseCode::NXDomain);
        };
        let data = RData::A(A::from(address));
        let asked = self.query.query_type == RecordType::A;
        let record = asked.then(|| Record::from_rdata(self.query.name.clone(), INTERNAL_TTL, data));
        self.records(ResponseCode::NoError, record)
    }

    fn records(self, code: ResponseCode, record: Option<Record>) -> Plan {
        let mut response = Message::response(self.message.metadata.id, OpCode::Query);
        response.metadata.recursion_desired = self.message.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.metadata.response_code = code;
        response.add_query(self.query);
        response.add_answers(record);
        if self.message.edns.is_some() {
            response.set_edns(edns(UDP_MAX, false));
        }
        encoded(&response)
    }
}

fn refuse(id: u16, op_code: OpCode, code: ResponseCode) -> Plan {
    encoded(&Message::error_msg(id, op_code, code))
}

fn encoded(response: &Message) -> Plan {
    response.to_vec().map_or(Plan::Ignore, Plan::Answer)
}

fn edns(payload: u16, dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    edns.set_dnssec_ok(dnssec_ok);
    edns
}

fn labels(name: &Name) -> Vec<String> {
    let labels = name.iter();
    labels
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect()
}

fn is_local(labels: &[String]) -> bool {
    if let [] | [_] = labels {
        // The root and the top-level domains themselves have no addresses;
        // a host's neighbours are found by such names.
        return true;
    }
    let name = labels.join(".");
    let private_172 = (16..32).map(|octet| format!("{octet}.172.in-addr.arpa"));
    let mut zones = LOCAL
        .iter()
        .map(|zone| (*zone).to_owned())
        .chain(private_172);
    zones.any(|zone| {
        name.strip_suffix(&zone)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

impl Question {
    /// The query for an upstream resolver, made anew: no byte of the
    /// client's but the name goes there.
    pub(crate) fn upstream_query(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        if let Some((_, dnssec_ok)) = self.edns {
            message.set_edns(edns(UDP_MAX, dnssec_ok));
        }
        message.to_vec().ok()
    }

    /// Whether these bytes answer the query that went out under this id.
    pub(crate) fn is_answered_by(&self, id: u16, bytes: &[u8]) -> Option<Answered> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).ok()?;
        let metadata = header.metadata;
        if metadata.id != id
            || metadata.message_type != MessageType::Response
            || metadata.op_code != OpCode::Query
            || header.counts.queries != 1
        {
            return None;
        }
        let query = Message::read_queries(&mut decoder, 1).ok()?.pop()?;
        let same = query.name == self.query.name
            && query.query_type == self.query.query_type
            && query.query_class == self.query.query_class;
        let failed = [ResponseCode::ServFail, ResponseCode::Refused];
        same.then(|| Answered {
            truncated: metadata.truncation,
            failed: failed.contains(&metadata.response_code),
        })
    }

    /// An upstream's answer as the client gets it, shortened for UDP.
    pub(crate) fn relay(&self, mut answer: Vec<u8>, udp: bool) -> Option<Vec<u8>> {
        let limit = match self.edns {
            _ if !udp => u16::MAX,
            Some((payload, _)) => payload.clamp(UDP_DEFAULT, UDP_MAX),
            None => UDP_DEFAULT,
        };
        if answer.len() > usize::from(limit) {
            return self.own(ResponseCode::NoError, true);
        }
        let id = answer.get_mut(..HEADER_LEN)?.first_chunk_mut::<2>()?;
        *id = self.id.to_be_bytes();
        Some(answer)
    }

    /// Says that no upstream could help.
    pub(crate) fn failure(&self) -> Option<Vec<u8>> {
        self.own(ResponseCode::ServFail, false)
    }

    fn own(&self, code: ResponseCode, truncated: bool) -> Option<Vec<u8>> {
        let mut response = Message::response(self.id, OpCode::Query);
        response.metadata.recursion_desired = true;
        response.metadata.recursion_available = true;
        response.metadata.response_code = code;
        response.metadata.truncation = truncated;
        response.add_query(self.query.clone());
        if self.edns.is_some() {
            response.set_edns(edns(UDP_MAX, false));
        }
        response.to_vec().ok()
    }
}

/// What kind of answer an upstream gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answered {
    /// The whole of it needs TCP.
    pub(crate) truncated: bool,
    /// Another upstream may do better.
    pub(crate) failed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn lookup(name: &str) -> Option<Ipv4Addr> {
        (name == "hello").then_some(Ipv4Addr::new(198, 18, 0, 1))
    }

    fn check(name: &str, kind: RecordType, egress: bool, expected: &str) {
        let said = match plan(&query(name, kind), egress, lookup) {
            Plan::Ignore => "nothing".to_owned(),
            Plan::Forward(_) => "forward".to_owned(),
            Plan::Answer(bytes) => {
                let message = Message::from_vec(&bytes).unwrap();
                assert_eq!(message.metadata.id, 7);
                let addresses = message.answers.iter().filter_map(|a| a.data.ip_addr());
                let addresses: Vec<_> = addresses.map(|ip| ip.to_string()).collect();
                format!(
                    "{:?} {}",
                    message.metadata.response_code,
                    addresses.join(",")
                )
            }
        };
        assert_eq!(said.trim_end(), expected, "{name} {kind} egress {egress}");
    }

    #[test]
    fn names_are_answered_refused_or_forwarded() {
        use RecordType as R;
        let cases = [
            ("hello.skiff.internal.", R::A, false, "NoError 198.18.0.1"),
            ("HELLO.Skiff.Internal.", R::A, true, "NoError 198.18.0.1"),
            ("hello.skiff.internal.", R::AAAA, true, "NoError"),
            ("other.skiff.internal.", R::A, true, "NXDomain"),
            ("a.hello.skiff.internal.", R::A, true, "NXDomain"),
            ("skiff.internal.", R::A, true, "NXDomain"),
            ("example.com.", R::A, true, "forward"),
            ("notskiff.internal.", R::A, true, "forward"),
            ("example.com.", R::MX, true, "forward"),
            ("example.com.", R::A, false, "NXDomain"),
            ("example.com.", R::ANY, true, "Refused"),
            ("example.com.", R::AXFR, true, "Refused"),
            ("intranet.", R::A, true, "NXDomain"),
            ("printer.local.", R::A, true, "NXDomain"),
            ("notlocal.com.", R::A, true, "forward"),
            ("4.3.2.10.in-addr.arpa.", R::PTR, true, "NXDomain"),
            ("4.3.20.172.in-addr.arpa.", R::PTR, true, "NXDomain"),
            ("8.8.8.8.in-addr.arpa.", R::PTR, true, "forward"),
            ("example.com.", R::AAAA, true, "forward"),
            ("example.com.", R::AAAA, false, "NXDomain"),
            ("1.0.0.c.e.0.0.0.d.f.ip6.arpa.", R::PTR, true, "NXDomain"),
            ("1.0.8.e.f.ip6.arpa.", R::PTR, true, "NXDomain"),
            ("1.0.0.0.0.2.ip6.arpa.", R::PTR, true, "forward"),
        ];
        for (name, kind, egress, expected) in cases {
            check(name, kind, egress, expected);
        }
    }

    fn question(name: &str) -> Question {
        match plan(&query(name, RecordType::A), true, lookup) {
            Plan::Forward(question) => question,
            other => panic!("{other:?}"),
        }
    }

    fn response(id: u16, name: &str, records: usize) -> Vec<u8> {
        let mut message = Message::response(id, OpCode::Query);
        let name = Name::from_ascii(name).unwrap();
        message.add_query(Query::query(name.clone(), RecordType::A));
        for _ in 0..records {
            let data = RData::A(A::from(Ipv4Addr::new(11, 22, 33, 44)));
            message.add_answer(Record::from_rdata(name.clone(), 60, data));
        }
        message.to_vec().unwrap()
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let question = question("example.com.");
        let sent = question.upstream_query(99).unwrap();
        assert_eq!(Message::from_vec(&sent).unwrap().metadata.id, 99);
        assert!(
            question
                .is_answered_by(99, &response(99, "example.com.", 1))
                .is_some()
        );
        assert_eq!(
            question.is_answered_by(99, &response(98, "example.com.", 1)),
            None
        );
        assert_eq!(
            question.is_answered_by(99, &response(99, "example.net.", 1)),
            None
        );
        assert_eq!(question.is_answered_by(99, &sent), None);
        assert_eq!(question.is_answered_by(99, &[]), None);
    }

    #[test]
    fn an_answer_gets_the_clients_id_and_fits() {
        let question = question("example.com.");
        let short = question
            .relay(response(99, "example.com.", 1), true)
            .unwrap();
        let message = Message::from_vec(&short).unwrap();
        assert_eq!((message.metadata.id, message.answers.len()), (7, 1));
        let long = response(99, "example.com.", 60);
        let cut = question.relay(long.clone(), true).unwrap();
        let message = Message::from_vec(&cut).unwrap();
        assert!(message.metadata.truncation);
        assert!(cut.len() <= usize::from(UDP_DEFAULT));
        let whole = question.relay(long.clone(), false).unwrap();
        assert_eq!(whole.len(), long.len());
    }

    /// Seeded, so that a failure comes again.
    fn mutate(bytes: &mut Vec<u8>, state: &mut u64) {
        let mut next = || {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            usize::try_from(*state >> 33).unwrap()
        };
        for _ in 0..=next() % 6 {
            let at = next() % (bytes.len() + 1);
            match next() % 4 {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, next().to_le_bytes()[0]),
                2 => bytes.extend_from_within(at..),
                _ if at < bytes.len() => bytes[at] = next().to_le_bytes()[0],
                _ => {}
            }
            bytes.truncate(2 * QUERY_MAX);
        }
    }

    #[test]
    fn hostile_bytes_do_no_harm() {
        let question = question("example.com.");
        let seeds = [
            query("hello.skiff.internal.", RecordType::A),
            query("a.very.long.name.example.com.", RecordType::TXT),
            response(7, "example.com.", 3),
            Vec::new(),
        ];
        let mut state = 0x5eed;
        for round in 0..40_000 {
            let mut bytes = seeds[round % seeds.len()].clone();
            mutate(&mut bytes, &mut state);
            match plan(&bytes, true, lookup) {
                Plan::Answer(answer) => {
                    let message = Message::from_vec(&answer).unwrap();
                    assert_eq!(message.metadata.message_type, MessageType::Response);
                    assert_eq!(answer[..2], bytes[..2]);
                    // Nothing to amplify with.
                    assert!(answer.len() <= bytes.len() + 64, "{bytes:?}");
                }
                Plan::Forward(question) => assert!(question.upstream_query(1).is_some()),
                Plan::Ignore => {}
            }
            if question.is_answered_by(7, &bytes).is_some() {
                question.relay(bytes, true).unwrap();
            }
        }
    }
}
