//! nftables over nfnetlink: the few messages that run per instance, where
//! starting `nft` would cost milliseconds. Attribute numbers are those of
//! linux/netfilter/nf_tables.h.

use std::net::{IpAddr, Ipv4Addr};

use crate::netlink::{ACK, APPEND, CREATE, Request};

const SUBSYS_NFTABLES: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = SUBSYS_NFTABLES;
const DELTABLE: u16 = SUBSYS_NFTABLES | 2;
const NEWCHAIN: u16 = SUBSYS_NFTABLES | 3;
const NEWRULE: u16 = SUBSYS_NFTABLES | 6;
const NEWSETELEM: u16 = SUBSYS_NFTABLES | 12;
const DELSETELEM: u16 = SUBSYS_NFTABLES | 14;

pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const SET_ELEMENTS_TABLE: u16 = 1;
const SET_ELEMENTS_SET: u16 = 2;
const SET_ELEMENTS: u16 = 3;
const SET_ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;

const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SOURCE_NAT: i32 = 100;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;
const META_IN_INTERFACE: u32 = 4;
const META_OUT_INTERFACE: u32 = 5;
const META_FAMILY: u32 = 15;
const META_L4PROTO: u32 = 16;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_NOT_EQUAL: u32 = 1;
const CONNECTION_STATE: u32 = 0;
/// Of a connection that is known, and of what belongs to one (nf_conntrack_common.h).
pub(crate) const STATE_KNOWN: u32 = 1 << 1 | 1 << 2;
pub(crate) const STATE_NEW: u32 = 1 << 3;
const CONNECTIONS_OVER: u32 = 1;
/// In the words of whichever family a packet is of.
const REJECT_ICMP_ANY: u32 = 2;
const REJECT_ADMIN_PROHIBITED: u8 = 3;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const CHECKSUM_INET: u32 = 1;
const IP_SOURCE: u32 = 12;
const IP6_SOURCE: u32 = 8;
const IP_DESTINATION: u32 = 16;
const PORT_SOURCE: u32 = 0;
const PORT_DESTINATION: u32 = 2;
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;
const IPPROTO_TCP: u8 = 6;

/// nfgenmsg: family, version, resource id in network order.
fn nfgenmsg(family: u8, resource: u8) -> [u8; 4] {
    [family, 0, 0, resource]
}

/// Wraps what `fill` adds into one transaction.
pub(crate) fn batch(request: &mut Request, fill: impl FnOnce(&mut Request)) {
    request.message(BATCH_BEGIN, 0, &nfgenmsg(0, 10), |_| {});
    fill(request);
    request.message(BATCH_END, 0, &nfgenmsg(0, 10), |_| {});
}

/// A chain, by the names of itself and of its table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain<'a> {
    /// The table's: [`NFPROTO_INET`] or [`NFPROTO_IPV4`].
    pub(crate) family: u8,
    pub(crate) table: &'a str,
    pub(crate) name: &'a str,
}

/// What comes by a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// For the namespace itself.
    Input,
    /// From one link to another; what no rule accepts is dropped.
    Forward,
    /// From the namespace itself.
    Output,
    /// The first packet of each connection that leaves, for its address to be
    /// another from then on.
    SourceNat,
}

impl Hook {
    const fn kind(self) -> &'static str {
        match self {
            Self::SourceNat => "nat",
            Self::Input | Self::Forward | Self::Output => "filter",
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Input => HOOK_INPUT,
            Self::Forward => HOOK_FORWARD,
            Self::Output => HOOK_OUTPUT,
            Self::SourceNat => HOOK_POSTROUTING,
        }
    }

    const fn priority(self) -> i32 {
        match self {
            Self::SourceNat => PRIORITY_SOURCE_NAT,
            Self::Input | Self::Forward | Self::Output => PRIORITY_FILTER,
        }
    }

    const fn policy(self) -> u32 {
        match self {
            Self::Forward => DROP,
            Self::Input | Self::Output | Self::SourceNat => ACCEPT,
        }
    }
}

/// Makes a table.
pub(crate) fn add_table(request: &mut Request, family: u8, table: &str) {
    request.message(NEWTABLE, ACK | CREATE, &nfgenmsg(family, 0), |message| {
        message.text(TABLE_NAME, table);
    });
}

/// Removes an inet table, which must be there.
pub(crate) fn delete_table(request: &mut Request, table: &str) {
    request.message(DELTABLE, ACK, &nfgenmsg(NFPROTO_INET, 0), |message| {
        message.text(TABLE_NAME, table);
    });
}

/// Makes a chain.
pub(crate) fn add_chain(request: &mut Request, chain: Chain<'_>, hook: Hook) {
    let fixed = nfgenmsg(chain.family, 0);
    request.message(NEWCHAIN, ACK | CREATE, &fixed, |message| {
        message.text(CHAIN_TABLE, chain.table);
        message.text(CHAIN_NAME, chain.name);
        message.nested(CHAIN_HOOK, |place| {
            place.attribute(HOOK_NUMBER, &hook.number().to_be_bytes());
            place.attribute(HOOK_PRIORITY, &hook.priority().to_be_bytes());
        });
        message.attribute(CHAIN_POLICY, &hook.policy().to_be_bytes());
        message.text(CHAIN_TYPE, hook.kind());
    });
}

/// Appends a rule to a chain.
pub(crate) fn add_rule(request: &mut Request, chain: Chain<'_>, fill: impl FnOnce(&mut Rule<'_>)) {
    let fixed = nfgenmsg(chain.family, 0);
    request.message(NEWRULE, ACK | CREATE | APPEND, &fixed, |message| {
        message.text(RULE_TABLE, chain.table);
        message.text(RULE_CHAIN, chain.name);
        message.nested(RULE_EXPRESSIONS, |expressions| {
            fill(&mut Rule { expressions });
        });
    });
}

/// The expressions of a rule, in the order they are evaluated.
#[derive(Debug)]
pub(crate) struct Rule<'a> {
    expressions: &'a mut Request,
}

impl Rule<'_> {
    pub(crate) fn destination_is(&mut self, address: Ipv4Addr) {
        self.load(BASE_NETWORK, IP_DESTINATION, 4);
        self.compare(&address.octets());
    }

    pub(crate) fn source_is(&mut self, address: Ipv4Addr) {
        self.load(BASE_NETWORK, IP_SOURCE, 4);
        self.compare(&address.octets());
    }

    /// For a table of both families.
    pub(crate) fn source_is_not(&mut self, address: IpAddr) {
        self.load_meta(META_FAMILY);
        match address {
            IpAddr::V4(address) => {
                self.compare(&[NFPROTO_IPV4]);
                self.load(BASE_NETWORK, IP_SOURCE, 4);
                self.compare_as(COMPARE_NOT_EQUAL, &address.octets());
            }
            IpAddr::V6(address) => {
                self.compare(&[NFPROTO_IPV6]);
                self.load(BASE_NETWORK, IP6_SOURCE, 16);
                self.compare_as(COMPARE_NOT_EQUAL, &address.octets());
            }
        }
    }

    pub(crate) fn comes_by(&mut self, link: u32) {
        self.load_meta(META_IN_INTERFACE);
        self.compare(&link.to_ne_bytes());
    }

    pub(crate) fn leaves_by(&mut self, link: u32) {
        self.load_meta(META_OUT_INTERFACE);
        self.compare(&link.to_ne_bytes());
    }

    /// Its connection is in one of these states.
    pub(crate) fn state_is(&mut self, states: u32) {
        self.load_state(states);
        self.compare_as(COMPARE_NOT_EQUAL, &[0; 4]);
    }

    /// Its connection is in none of these states.
    pub(crate) fn state_is_not(&mut self, states: u32) {
        self.load_state(states);
        self.compare(&[0; 4]);
    }

    /// With its own, the namespace has more connections than so many.
    pub(crate) fn connections_are_over(&mut self, limit: u32) {
        self.expression("connlimit", |limits| {
            limits.attribute(1, &limit.to_be_bytes());
            limits.attribute(2, &CONNECTIONS_OVER.to_be_bytes());
        });
    }

    /// Who leaves gets the address of the link that it leaves by.
    pub(crate) fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    /// Tells the sender that it may not. In a table of both families.
    pub(crate) fn reject(&mut self) {
        self.expression("reject", |reject| {
            reject.attribute(1, &REJECT_ICMP_ANY.to_be_bytes());
            reject.attribute(2, &[REJECT_ADMIN_PROHIBITED]);
        });
    }

    pub(crate) fn accept(&mut self) {
        self.verdict(ACCEPT);
    }

    pub(crate) fn drop(&mut self) {
        self.verdict(DROP);
    }

    pub(crate) fn protocol_is(&mut self, protocol: u8) {
        self.load_meta(META_L4PROTO);
        self.compare(&[protocol]);
    }

    pub(crate) fn destination_port_is(&mut self, port: u16) {
        self.load(BASE_TRANSPORT, PORT_DESTINATION, 2);
        self.compare(&port.to_be_bytes());
    }

    pub(crate) fn source_port_is(&mut self, port: u16) {
        self.load(BASE_TRANSPORT, PORT_SOURCE, 2);
        self.compare(&port.to_be_bytes());
    }

    pub(crate) fn set_destination_port(&mut self, protocol: u8, port: u16) {
        self.store_port(protocol, PORT_DESTINATION, port);
    }

    pub(crate) fn set_source_port(&mut self, protocol: u8, port: u16) {
        self.store_port(protocol, PORT_SOURCE, port);
    }

    fn load(&mut self, base: u32, offset: u32, len: u32) {
        self.expression("payload", |payload| {
            payload.attribute(1, &REGISTER.to_be_bytes());
            payload.attribute(2, &base.to_be_bytes());
            payload.attribute(3, &offset.to_be_bytes());
            payload.attribute(4, &len.to_be_bytes());
        });
    }

    fn load_meta(&mut self, key: u32) {
        self.expression("meta", |meta| {
            meta.attribute(2, &key.to_be_bytes());
            meta.attribute(1, &REGISTER.to_be_bytes());
        });
    }

    /// The connection's state, but for the others.
    fn load_state(&mut self, states: u32) {
        self.expression("ct", |connection| {
            connection.attribute(2, &CONNECTION_STATE.to_be_bytes());
            connection.attribute(1, &REGISTER.to_be_bytes());
        });
        self.expression("bitwise", |bitwise| {
            bitwise.attribute(1, &REGISTER.to_be_bytes());
            bitwise.attribute(2, &REGISTER.to_be_bytes());
            bitwise.attribute(3, &4u32.to_be_bytes());
            bitwise.nested(4, |mask| mask.attribute(DATA_VALUE, &states.to_ne_bytes()));
            bitwise.nested(5, |flip| flip.attribute(DATA_VALUE, &[0; 4]));
        });
    }

    fn verdict(&mut self, code: u32) {
        self.expression("immediate", |immediate| {
            immediate.attribute(1, &VERDICT_REGISTER.to_be_bytes());
            immediate.nested(2, |data| {
                data.nested(DATA_VERDICT, |verdict| {
                    verdict.attribute(VERDICT_CODE, &code.to_be_bytes());
                });
            });
        });
    }

    fn compare(&mut self, value: &[u8]) {
        self.compare_as(COMPARE_EQUAL, value);
    }

    fn compare_as(&mut self, how: u32, value: &[u8]) {
        self.expression("cmp", |cmp| {
            cmp.attribute(1, &REGISTER.to_be_bytes());
            cmp.attribute(2, &how.to_be_bytes());
            cmp.nested(3, |data| data.attribute(DATA_VALUE, value));
        });
    }

    fn store_port(&mut self, protocol: u8, offset: u32, port: u16) {
        let checksum = if protocol == IPPROTO_TCP {
            TCP_CHECKSUM
        } else {
            UDP_CHECKSUM
        };
        self.expression("immediate", |immediate| {
            immediate.attribute(1, &REGISTER.to_be_bytes());
            immediate.nested(2, |data| data.attribute(DATA_VALUE, &port.to_be_bytes()));
        });
        self.expression("payload", |payload| {
            payload.attribute(5, &REGISTER.to_be_bytes());
            payload.attribute(2, &BASE_TRANSPORT.to_be_bytes());
            payload.attribute(3, &offset.to_be_bytes());
            payload.attribute(4, &2u32.to_be_bytes());
            payload.attribute(6, &CHECKSUM_INET.to_be_bytes());
            payload.attribute(7, &checksum.to_be_bytes());
        });
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Request)) {
        self.expressions.nested(LIST_ELEMENT, |element| {
            element.text(EXPRESSION_NAME, name);
            element.nested(EXPRESSION_DATA, fill);
        });
    }
}

/// A set of an inet table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set<'a> {
    pub(crate) table: &'a str,
    pub(crate) name: &'a str,
}

/// Adds elements; one that is there already is no error.
pub(crate) fn add_elements(request: &mut Request, set: Set<'_>, keys: &[Vec<u8>]) {
    elements(request, NEWSETELEM, ACK | CREATE, set, keys);
}

/// Removes elements, each of which must be there.
pub(crate) fn delete_elements(request: &mut Request, set: Set<'_>, keys: &[Vec<u8>]) {
    elements(request, DELSETELEM, ACK, set, keys);
}

fn elements(request: &mut Request, kind: u16, flags: u16, set: Set<'_>, keys: &[Vec<u8>]) {
    request.message(kind, flags, &nfgenmsg(NFPROTO_INET, 0), |message| {
        message.text(SET_ELEMENTS_TABLE, set.table);
        message.text(SET_ELEMENTS_SET, set.name);
        message.nested(SET_ELEMENTS, |list| {
            for key in keys {
                list.nested(LIST_ELEMENT, |element| {
                    element.nested(SET_ELEMENT_KEY, |data| data.attribute(DATA_VALUE, key));
                });
            }
        });
    });
}
