//! The wire format: tags, varints, lengths.

use super::Error;

/// A field's content.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Reads the fields of one message.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field's number and content, or `None` at the end.
    pub fn field(&mut self) -> Result<Option<(u32, Content<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Error::Wire("illegal tag"))?;
        if number == 0 {
            return Err(Error::Wire("illegal tag 0"));
        }
        let content = match tag & 7 {
            0 => Content::Varint(self.varint()?),
            1 => Content::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Wire("negative length found during unmarshaling"))?;
                Content::Bytes(self.take(length)?)
            }
            5 => Content::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(Error::Wire("illegal wireType")),
        };
        Ok(Some((number, content)))
    }

    pub fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(Error::End)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Wire("integer overflow"))
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Error::End)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.take(N)?.try_into().map_err(|_| Error::End)
    }
}

/// Writes the fields of one message.
#[derive(Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub fn with_capacity(bytes: usize) -> Self {
        Self { out: Vec::with_capacity(bytes) }
    }
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }
    pub fn varint(&mut self, field: u32, value: u64) {
        self.number(u64::from(field) << 3);
        self.number(value);
    }
    pub fn fixed64(&mut self, field: u32, value: u64) {
        self.number(u64::from(field) << 3 | 1);
        self.raw(&value.to_le_bytes());
    }
    pub fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.number(u64::from(field) << 3 | 2);
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }
    /// Writes a message in place; its length is put in front when it is known.
    pub fn nested(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        self.number(u64::from(field) << 3 | 2);
        let start = self.out.len();
        write(self);
        let (length, used) = varint((self.out.len() - start) as u64);
        self.out.splice(start..start, length.into_iter().take(used));
    }
    fn number(&mut self, value: u64) {
        let (bytes, used) = varint(value);
        self.out.extend(bytes.into_iter().take(used));
    }
}

/// The bytes of a varint and how many of them count.
fn varint(mut value: u64) -> ([u8; 10], usize) {
    let mut bytes = [0; 10];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = value as u8 & 0x7f;
        value >>= 7;
        if value == 0 {
            return (bytes, at + 1);
        }
        *byte |= 0x80;
    }
    (bytes, 10)
}
