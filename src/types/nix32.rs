//! Nix's base 32 (Nix, `src/libutil/hash.cc`): digits and letters without e, o,
//! t, u, and the digits of a number in reverse order.

/// The 32 digits, from 0 to 31.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// The value of each byte as a digit; 255 for one that is none.
const VALUES: [u8; 256] = {
    let mut values = [255; 256];
    let mut value = 0;
    while value < ALPHABET.len() {
        values[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// The value of a digit, from 0 to 31; none for a byte that is no digit.
#[must_use]
pub fn value(digit: u8) -> Option<u8> {
    let value = VALUES[usize::from(digit)];
    (value < 32).then_some(value)
}

/// Writes a digest: 52 digits for a SHA-256, as narinfo files and fingerprints
/// have it, 32 digits for the 20 bytes of a store path's hash part.
#[must_use]
pub fn encode(digest: &[u8]) -> String {
    let digit = |n: usize| {
        let (byte, shift) = (n * 5 / 8, n * 5 % 8);
        let next = digest.get(byte + 1).copied().unwrap_or(0);
        let pair = u16::from(digest[byte]) | (u16::from(next) << 8);
        char::from(ALPHABET[usize::from((pair >> shift) & 31)])
    };
    (0..(digest.len() * 8).div_ceil(5)).rev().map(digit).collect()
}

/// Reads 52 digits; none when a character is not a digit, the length is another
/// one or the number has more than 256 bits.
#[must_use]
pub fn decode(text: &str) -> Option<[u8; 32]> {
    if text.len() != 52 {
        return None;
    }
    let mut digest = [0u8; 32];
    for (n, c) in text.bytes().rev().enumerate() {
        let digit = u16::from(value(c)?);
        let (byte, bits) = (n * 5 / 8, digit << (n * 5 % 8));
        *digest.get_mut(byte)? |= u8::try_from(bits & 0xff).ok()?;
        let carry = u8::try_from(bits >> 8).ok()?;
        match digest.get_mut(byte + 1) {
            Some(next) => *next |= carry,
            None if carry != 0 => return None,
            None => {}
        }
    }
    Some(digest)
}
