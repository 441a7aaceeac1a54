//! Numbers for people: short, of bounded width, never rounded to a unit too small.

/// Units of bytes, each 1024 of the one before.
const BYTE_UNITS: [&str; 7] = [" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"];

/// Bytes in binary units, at most 8 characters: `0 B`, `999 B`, `1.5 KiB`, `1023 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes, 1024, &BYTE_UNITS)
}

/// A part of so many bytes, both in the unit of the whole: `61/80 GiB`, `0.4/16 GiB`; what is there never shows as 0.
pub(crate) fn bytes_of(part: u64, whole: u64) -> String {
    let mut unit = 0;
    let mut divisor = 1_u64;
    while unit + 1 < BYTE_UNITS.len() && whole / divisor >= 1024 {
        divisor *= 1024;
        unit += 1;
    }
    let tenths = u128::from(part) * 10 / u128::from(divisor);
    let part = match tenths {
        _ if unit == 0 => part.to_string(),
        0 if part > 0 => "<0.1".to_owned(),
        0 => "0".to_owned(),
        1..100 => format!("{}.{}", tenths / 10, tenths % 10),
        _ => (tenths / 10).to_string(),
    };
    format!("{part}/{}{}", whole / divisor, BYTE_UNITS[unit])
}

/// A share as a percentage, cut: `91%`, `<1%`, `100%`; nothing if it is no share.
pub(crate) fn share(share: f64) -> Option<String> {
    if !share.is_finite() || share < 0.0 {
        return None;
    }
    // What binary fractions lack of the number that was meant.
    let percent = (share * 100.0 + 1e-6).floor() as u64;
    Some(match percent {
        0 if share > 0.0 => "<1%".to_owned(),
        _ => format!("{percent}%"),
    })
}

/// A quantity in decimal multiples of its unit: `9.5 W`, `312 W`, `1.4 GHz`; nothing if it is none.
pub(crate) fn quantity(value: f64, unit: &str) -> Option<String> {
    if !value.is_finite() || value < 0.0 {
        return None;
    }
    if value < 1000.0 {
        return Some(if value >= 10.0 || value.fract() == 0.0 {
            format!("{} {unit}", value.floor())
        } else {
            format!("{:.1} {unit}", (value * 10.0).floor() / 10.0)
        });
    }
    // Saturates.
    let text = scaled(value as u64, 1000, &["", " k", " M", " G", " T", " P", " E"]);
    Some(format!("{text}{unit}"))
}

/// Degrees Celsius: `64°C`; nothing if it is none.
pub(crate) fn celsius(degrees: f64, utf8: bool) -> Option<String> {
    let sign = if utf8 { "°" } else { "" };
    // Colder than all there is, hotter than any chip: no temperature.
    (degrees.abs() < 1000.0).then(|| format!("{}{sign}C", degrees.round() as i64))
}

/// Hours: `0.02`, `1.5`, `120`; nothing shows as 0 that is not.
pub(crate) fn hours(hours: f64) -> String {
    small_rate(hours)
}

/// A count in decimal units, at most 5 characters: `999`, `1.5k`, `12k`, `3.0M`.
pub(crate) fn count(count: u64) -> String {
    scaled(count, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

fn scaled(value: u64, base: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let mut divisor = 1_u64;
    while unit + 1 < units.len() && value / divisor >= base {
        divisor *= base;
        unit += 1;
    }
    let whole = value / divisor;
    // Cut, not rounded: 1023.99 KiB must not become 1024 KiB.
    let tenth = u128::from(value % divisor) * 10 / u128::from(divisor);
    if unit == 0 || whole >= 10 {
        format!("{whole}{}", units[unit])
    } else {
        format!("{whole}.{tenth}{}", units[unit])
    }
}

/// Microseconds, at most 6 characters: `210µs`, `1.5ms`, `12ms`, `3.0s`, `4294s`.
pub(crate) fn micros(us: u32, utf8: bool) -> String {
    match us {
        0..1000 => format!("{us}{}", if utf8 { "µs" } else { "us" }),
        1000..10_000 => format!("{}.{}ms", us / 1000, us % 1000 / 100),
        10_000..1_000_000 => format!("{}ms", us / 1000),
        1_000_000..10_000_000 => format!("{}.{}s", us / 1_000_000, us % 1_000_000 / 100_000),
        _ => format!("{}s", us / 1_000_000),
    }
}

/// Nanoseconds, at most 6 characters up to a century: `640ns`, `210µs`, `1.5ms`, `12ms`, `3.0s`, `9999s`, `3h`. Cut.
pub(crate) fn nanos(ns: u64, utf8: bool) -> String {
    match ns {
        0..1000 => format!("{ns}ns"),
        1000..10_000 => {
            let unit = if utf8 { "µs" } else { "us" };
            format!("{}.{}{unit}", ns / 1000, ns % 1000 / 100)
        }
        10_000..10_000_000_000_000 => {
            let us = u32::try_from(ns / 1000).unwrap_or(u32::MAX);
            if ns / 1000 > u64::from(us) {
                format!("{}s", ns / 1_000_000_000)
            } else {
                micros(us, utf8)
            }
        }
        _ => format!("{}h", ns / 3_600_000_000_000),
    }
}

/// An upper bound in nanoseconds, at most 7 characters up to a century: `≤640ns`, `≤2.1ms`. Never less than it is.
pub(crate) fn bound(ns: u64, utf8: bool) -> String {
    // What `nanos` cuts is below this step.
    let step = match ns {
        0..1000 => 1,
        1000..10_000 => 100,
        10_000..1_000_000 => 1000,
        1_000_000..10_000_000 => 100_000,
        10_000_000..1_000_000_000 => 1_000_000,
        1_000_000_000..10_000_000_000 => 100_000_000,
        10_000_000_000..10_000_000_000_000 => 1_000_000_000,
        _ => 3_600_000_000_000,
    };
    let up = ns.div_ceil(step).saturating_mul(step);
    format!("{}{}", if utf8 { "≤" } else { "<=" }, nanos(up, utf8))
}

/// A rate in counts a second: `0.02`, `1.5`, `12k`; nothing shows as 0 that is not.
pub(crate) fn small_rate(rate: f64) -> String {
    match rate {
        _ if rate >= 10.0 => self::rate(rate),
        _ if rate >= 0.95 => format!("{rate:.1}"),
        _ if rate >= 0.01 => format!("{rate:.2}"),
        _ if rate > 0.0 => "<0.01".to_owned(),
        _ => "0".to_owned(),
    }
}

/// A rate in bytes a second: `1.5 MiB/s`.
pub(crate) fn byte_rate(rate: f64) -> String {
    format!("{}/s", bytes(whole(rate)))
}

/// A rate in counts a second, without a unit.
pub(crate) fn rate(rate: f64) -> String {
    count(whole(rate))
}

fn whole(rate: f64) -> u64 {
    // Saturates; NaN is 0.
    rate.round() as u64
}

/// Seconds: `0.5 s`, `12 s`, `3 min 4 s`, `2 h 5 min`, `3 d 2 h`.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        let tenths = (seconds.max(0.0) * 10.0).round() as u64;
        return if tenths.is_multiple_of(10) {
            format!("{} s", tenths / 10)
        } else {
            format!("{}.{} s", tenths / 10, tenths % 10)
        };
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => two(s / 60, "min", s % 60, "s"),
        3600..86_400 => two(s / 3600, "h", s % 3600 / 60, "min"),
        _ => two(s / 86_400, "d", s % 86_400 / 3600, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large} {large_unit}")
    } else {
        format!("{large} {large_unit} {small} {small_unit}")
    }
}

/// `1 flow`, `2 flows`, `1.5k flows`.
pub(crate) fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1_048_575), "1023 KiB");
        assert_eq!(bytes(u64::MAX), "15 EiB");
        assert_eq!(count(999), "999");
        assert_eq!(count(1500), "1.5k");
        assert_eq!(count(999_999), "999k");
        assert_eq!(micros(210, true), "210µs");
        assert_eq!(micros(1500, false), "1.5ms");
        assert_eq!(micros(u32::MAX, true), "4294s");
        assert_eq!(seconds(5.0), "5 s");
        assert_eq!(seconds(0.25), "0.3 s");
        assert_eq!(seconds(65.0), "1 min 5 s");
        assert_eq!(seconds(7200.0), "2 h");
        assert_eq!(counted(1, "flow", "flows"), "1 flow");
        assert_eq!(byte_rate(f64::NAN), "0 B/s");
        assert_eq!(nanos(640, true), "640ns");
        assert_eq!(nanos(2_097_152, true), "2.0ms");
        assert_eq!(nanos(5_000_000_000_000, true), "5000s");
        assert_eq!(nanos(u64::MAX, true), "5124095h");
        assert_eq!(bound(2_097_152, true), "≤2.1ms");
        assert_eq!(bound(512, false), "<=512ns");
        assert_eq!(bound(2048, true), "≤2.1µs");
        assert_eq!(bound(9999, true), "≤10µs");
        assert_eq!(bound(131_072, false), "<=132us");
        assert_eq!(bound(9_999_999, true), "≤10ms");
        assert_eq!(small_rate(0.004), "<0.01");
        assert_eq!(small_rate(9.96), "10.0");
        assert_eq!(small_rate(f64::NAN), "0");
        assert_eq!(bytes_of(61 << 30, 80 << 30), "61/80 GiB");
        assert_eq!(bytes_of(5 << 20, 80 << 30), "<0.1/80 GiB");
        assert_eq!(bytes_of(0, 80 << 30), "0/80 GiB");
        assert_eq!(bytes_of(u64::MAX, 1023), "18446744073709551615/1023 B");
        assert_eq!(share(0.29).unwrap(), "29%");
        assert_eq!(share(0.999).unwrap(), "99%");
        assert_eq!(share(0.001).unwrap(), "<1%");
        assert_eq!(share(0.0).unwrap(), "0%");
        assert_eq!(share(f64::NAN), None);
        assert_eq!(share(-0.1), None);
        assert_eq!(quantity(312.4, "W").unwrap(), "312 W");
        assert_eq!(quantity(9.57, "W").unwrap(), "9.5 W");
        assert_eq!(quantity(0.0, "J").unwrap(), "0 J");
        assert_eq!(quantity(1.41e9, "Hz").unwrap(), "1.4 GHz");
        assert_eq!(quantity(f64::INFINITY, "W"), None);
        assert_eq!(celsius(-3.0, false).unwrap(), "-3C");
        assert_eq!(celsius(f64::NAN, true), None);
    }

    proptest! {
        #[test]
        fn widths_are_bounded(value in any::<u64>(), us in any::<u32>()) {
            prop_assert!(bytes(value).len() <= 8);
            prop_assert!(count(value).len() <= 4);
            prop_assert!(micros(us, false).len() <= 6);
            prop_assert!(bytes_of(value, u64::MAX).len() <= 11);
        }

        #[test]
        fn quantities_never_panic(value in any::<f64>()) {
            let _ = (share(value), celsius(value, true), hours(value));
            if let Some(text) = quantity(value, "W") {
                prop_assert!(text.len() <= 8, "{}", text);
            }
        }

        /// What is shown is at most the value, and within 10 % of it.
        #[test]
        fn close_to_the_value(value in any::<u64>()) {
            let shown = bytes(value);
            let (number, unit) = shown.split_once(' ').unwrap();
            let power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].iter().position(|u| *u == unit).unwrap();
            let shown = number.parse::<f64>().unwrap() * 1024_f64.powi(i32::try_from(power).unwrap());
            prop_assert!(shown <= value as f64 * 1.000_001 && shown >= value as f64 * 0.9);
        }
    }
}
