//! nftables over nfnetlink: the few messages that run per instance, where
//! starting `nft` would cost milliseconds. Attribute numbers are those of
//! linux/netfilter/nf_tables.h.

use std::net::Ipv4Addr;

use crate::netlink::{ACK, CREATE, Request};

const SUBSYS_NFTABLES: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = SUBSYS_NFTABLES;
const DELTABLE: u16 = SUBSYS_NFTABLES | 2;
const NEWCHAIN: u16 = SUBSYS_NFTABLES | 3;
const NEWRULE: u16 = SUBSYS_NFTABLES | 6;
const NEWSETELEM: u16 = SUBSYS_NFTABLES | 12;
const DELSETELEM: u16 = SUBSYS_NFTABLES | 14;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
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

const HOOK_LOCAL_OUT: u32 = 3;
const REGISTER: u32 = 1;
const META_L4PROTO: u32 = 16;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const CHECKSUM_INET: u32 = 1;
const IP_SOURCE: u32 = 12;
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

/// Makes an IPv4 table.
pub(crate) fn add_table(request: &mut Request, table: &str) {
    request.message(
        NEWTABLE,
        ACK | CREATE,
        &nfgenmsg(NFPROTO_IPV4, 0),
        |message| {
            message.text(TABLE_NAME, table);
        },
    );
}

/// Removes an inet table, which must be there.
pub(crate) fn delete_table(request: &mut Request, table: &str) {
    request.message(DELTABLE, ACK, &nfgenmsg(NFPROTO_INET, 0), |message| {
        message.text(TABLE_NAME, table);
    });
}

/// Makes a filter chain for what the namespace itself sends.
pub(crate) fn add_output_chain(request: &mut Request, table: &str, chain: &str) {
    request.message(
        NEWCHAIN,
        ACK | CREATE,
        &nfgenmsg(NFPROTO_IPV4, 0),
        |message| {
            message.text(CHAIN_TABLE, table);
            message.text(CHAIN_NAME, chain);
            message.nested(CHAIN_HOOK, |hook| {
                hook.attribute(HOOK_NUMBER, &HOOK_LOCAL_OUT.to_be_bytes());
                hook.attribute(HOOK_PRIORITY, &0u32.to_be_bytes());
            });
            message.text(CHAIN_TYPE, "filter");
        },
    );
}

/// Appends a rule to a chain of an IPv4 table.
pub(crate) fn add_rule(
    request: &mut Request,
    table: &str,
    chain: &str,
    flags: u16,
    fill: impl FnOnce(&mut Rule<'_>),
) {
    request.message(NEWRULE, flags, &nfgenmsg(NFPROTO_IPV4, 0), |message| {
        message.text(RULE_TABLE, table);
        message.text(RULE_CHAIN, chain);
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

    pub(crate) fn protocol_is(&mut self, protocol: u8) {
        self.expression("meta", |meta| {
            meta.attribute(2, &META_L4PROTO.to_be_bytes());
            meta.attribute(1, &REGISTER.to_be_bytes());
        });
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

    fn compare(&mut self, value: &[u8]) {
        self.expression("cmp", |cmp| {
            cmp.attribute(1, &REGISTER.to_be_bytes());
            cmp.attribute(2, &0u32.to_be_bytes());
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
