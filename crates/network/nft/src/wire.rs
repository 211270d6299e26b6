//! Netlink framing: messages and attributes, written and read without ever trusting a length that came in.

/// `NLM_F_*` and `NLMSG_*` words of `linux/netlink.h`.
pub const REQUEST: u16 = 0x1;
pub const MULTI: u16 = 0x2;
pub const ACK: u16 = 0x4;
pub const DUMP: u16 = 0x300;
pub const REPLACE: u16 = 0x100;
pub const EXCL: u16 = 0x200;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;
pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;

const HEADER_BYTES: usize = 16;
const NESTED: u16 = 0x8000;
/// Type bits of an attribute, without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// A buffer of netlink messages, one after the other, as one `sendto` takes them.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
    /// An attribute outgrew its 16-bit length: the buffer must not be sent.
    overflowed: bool,
}

impl Encoder {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }
    /// One message; `body` writes what follows the netlink header.
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or_else(|_| {
            self.overflowed = true;
            0
        });
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }
    /// Adds [`ACK`] to the message that starts at `start` (from [`Encoder::position`] before it was written).
    pub fn request_ack(&mut self, start: usize) {
        if let Some(flags) = self.bytes.get_mut(start + 6..start + 8) {
            let value = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
            flags.copy_from_slice(&value.to_ne_bytes());
        }
    }
    pub fn position(&self) -> usize {
        self.bytes.len()
    }
    /// A protocol header such as `nfgenmsg` or `ifinfomsg`.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
    }
    pub fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NESTED);
        body(self);
        self.close(start);
    }
    /// Network byte order, as nfnetlink wants it.
    pub fn u32_be(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }
    pub fn u64_be(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }
    /// Host byte order, as rtnetlink wants it.
    pub fn u32_ne(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }
    /// With the terminating zero byte.
    pub fn string(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }
    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }
    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or_else(|_| {
            self.overflowed = true;
            4
        });
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }
    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

/// One message as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// The errno of an NLMSG_ERROR message: `Some(0)` is an acknowledgement, `None` is another kind of message.
    pub fn errno(&self) -> Option<i32> {
        if self.kind != ERROR {
            return None;
        }
        let code = i32::from_ne_bytes(self.payload.get(..4)?.try_into().ok()?);
        Some(code.checked_neg().unwrap_or(i32::MAX))
    }
    /// What follows a protocol header of `bytes` bytes, as attributes.
    pub fn attributes(&self, bytes: usize) -> Attributes<'_> {
        Attributes(self.payload.get(bytes..).unwrap_or_default())
    }
}

/// The messages of one datagram; ends at the first that is cut short.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;
    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..HEADER_BYTES)?;
        let length = u32::from_ne_bytes(header[0..4].try_into().ok()?) as usize;
        let payload = self.0.get(HEADER_BYTES..length)?;
        let message = Message {
            kind: u16::from_ne_bytes(header[4..6].try_into().ok()?),
            flags: u16::from_ne_bytes(header[6..8].try_into().ok()?),
            sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
            payload,
        };
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

/// Attributes as (type, value); ends at the first that is cut short.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first value of type `kind`.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }
    pub fn nested(&self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or_default())
    }
    pub fn u32_be(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }
    pub fn u16_be(&self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }
    pub fn u32_ne(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.get(kind)?.try_into().ok()?))
    }
    /// Without the terminating zero byte.
    pub fn string(&self, kind: u16) -> Option<&'a str> {
        let value = self.get(kind)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut encoder = Encoder::new();
        encoder.message(7, REQUEST, 42, |message| {
            message.raw(&[1, 2, 3, 4]);
            message.string(1, "web");
            message.nested(2, |inner| inner.u32_be(3, 80));
        });
        let message = Messages(encoder.bytes()).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (7, REQUEST, 42));
        assert_eq!(message.attributes(4).string(1), Some("web"));
        assert_eq!(message.attributes(4).nested(2).u32_be(3), Some(80));
    }

    #[test]
    fn an_attribute_that_outgrows_its_length_field_is_noticed() {
        let mut encoder = Encoder::new();
        encoder.message(7, REQUEST, 1, |message| message.attribute(1, &[0; 70_000]));
        assert!(encoder.overflowed());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for message in Messages(&bytes).take(300) {
                let _ = message.errno();
                for (_, value) in message.attributes(4).take(300) {
                    let _ = Attributes(value).take(300).count();
                }
            }
        }
    }
}
