//! YAML that others wrote, as values.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde_yaml::Value;

/// So many brackets may be open at once; those within texts count as well, which are mostly closed too.
const DEEPEST: usize = 5000;

/// Reads YAML. Aliases can make of a few lines more than any memory holds; such a text is refused
/// before anything is made of it, as soon as it is seen to be several times what was written. So is one that
/// is nested too deeply: the reader refuses that too, but only when its scanner has looked at each bracket
/// for each other.
pub fn plain(text: &str) -> Result<Value, serde_yaml::Error> {
    if depth(text) > DEEPEST {
        return Err(serde_yaml::Error::custom("it is nested too deeply"));
    }
    if text.contains('*') {
        let left = Cell::new(text.len() * 4 + 10_000);
        Size(&left).deserialize(serde_yaml::Deserializer::from_str(text))?;
    }
    serde_yaml::from_str(text)
}

/// How many brackets are open at once at most.
fn depth(text: &str) -> usize {
    let (mut open, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// Reads and keeps nothing, while what is read fits into what is left.
#[derive(Clone, Copy)]
struct Size<'a>(&'a Cell<usize>);

impl Size<'_> {
    fn take<E: Error>(self, size: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(1 + size);
        self.0.set(left.ok_or_else(|| E::custom("its aliases make far more of it than was written"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Size<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Size<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.take(0)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.take(0)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<(), E> {
        self.take(0)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<(), E> {
        self.take(0)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.take(text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.take(0)?;
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.take(0)?;
        while map.next_key_seed(self)?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
    }

    /// A value with a tag.
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<(), A::Error> {
        let ((), value) = data.variant_seed(self)?;
        value.newtype_variant_seed(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `levels` lists of ten, each of the one before.
    fn laughs(levels: usize) -> String {
        let lists =
            (1..levels).map(|i| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")));
        format!("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n{}", lists.collect::<String>())
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused_before_it_is_read() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        plain(&nested(50)).unwrap();
        plain(&"a: '[]'\n- {}\n".repeat(DEEPEST)).unwrap_err();
        let error = plain(&nested(DEEPEST + 1)).unwrap_err();
        assert_eq!(error.to_string(), "it is nested too deeply");
    }

    #[test]
    fn aliases_may_repeat_but_not_multiply() {
        let cert = "LS0t".repeat(5_000);
        let text = format!(
            "ca: &ca {cert}\nother: *ca\nthird: [*ca, !tag 1, !t {{x: *ca}}, -1, 2.5, yes, ~, '*']\n"
        );
        let value = plain(&text).unwrap();
        assert_eq!(value["other"], value["ca"]);
        assert_eq!(value, serde_yaml::from_str::<Value>(&text).unwrap());
        plain(&laughs(3)).unwrap();
        for bomb in [laughs(12), format!("a: &a {cert}\nb: [{}]\n", "*a, ".repeat(200))] {
            let error = plain(&bomb).unwrap_err();
            assert!(error.to_string().contains("far more of it than was written"), "{error}");
        }
    }
}
