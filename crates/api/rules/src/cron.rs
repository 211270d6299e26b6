//! The syntax of a CronJob's schedule, with the complaints of the parser that upstream uses (`robfig/cron`'s `ParseStandard`).

/// One of the five fields: its bounds and the words that stand for numbers.
struct Field {
    min: u32,
    max: u32,
    words: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { min: 0, max: 59, words: &[] },
    Field { min: 0, max: 23, words: &[] },
    Field { min: 1, max: 31, words: &[] },
    Field { min: 1, max: 12, words: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"] },
    Field { min: 0, max: 6, words: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

const DESCRIPTORS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// Checks `*/5 * * * *`, `@daily`, `@every 1h30m`. A leading `TZ=…` is passed over: others forbid it.
pub fn check(schedule: &str) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("empty spec string".into());
    }
    let schedule = match schedule.split_once(' ') {
        Some((zone, rest)) if zone.starts_with("TZ=") || zone.starts_with("CRON_TZ=") => rest.trim(),
        _ => schedule,
    };
    if schedule.starts_with('@') {
        return descriptor(schedule);
    }
    let words: Vec<&str> = schedule.split_whitespace().collect();
    if words.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", words.len(), words.join(" ")));
    }
    words.into_iter().zip(&FIELDS).try_for_each(|(word, field)| field.check(word))
}

fn descriptor(text: &str) -> Result<(), String> {
    if let Some(every) = text.strip_prefix("@every ") {
        let parsed = meta::time::parse_duration(every);
        return parsed.map(drop).ok_or_else(|| format!("failed to parse duration {text}: time: invalid duration {every:?}"));
    }
    if DESCRIPTORS.contains(&text) { Ok(()) } else { Err(format!("unrecognized descriptor: {text}")) }
}

impl Field {
    fn check(&self, text: &str) -> Result<(), String> {
        text.split(',').filter(|part| !part.is_empty()).try_for_each(|part| self.range(part))
    }

    /// `*`, `3`, `1-5`, each with `/step`.
    fn range(&self, text: &str) -> Result<(), String> {
        let with_step: Vec<&str> = text.split('/').collect();
        let bounds: Vec<&str> = with_step[0].split('-').collect();
        let (start, mut end) = match bounds.as_slice() {
            ["*" | "?", ..] => (self.min, self.max),
            [one] => {
                let number = self.number(one)?;
                (number, number)
            }
            [first, last] => (self.number(first)?, self.number(last)?),
            _ => return Err(format!("too many hyphens: {text}")),
        };
        let step = match with_step.as_slice() {
            [_] => 1,
            [_, step] => {
                let step = integer(step)?;
                // `N/step` means `N-max/step`.
                if bounds.len() == 1 {
                    end = self.max;
                }
                step
            }
            _ => return Err(format!("too many slashes: {text}")),
        };
        if start < self.min {
            return Err(format!("beginning of range ({start}) below minimum ({}): {text}", self.min));
        }
        if end > self.max {
            return Err(format!("end of range ({end}) above maximum ({}): {text}", self.max));
        }
        if start > end {
            return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
        }
        if step == 0 {
            return Err(format!("step of range should be a positive number: {text}"));
        }
        Ok(())
    }

    fn number(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_lowercase();
        match self.words.iter().position(|word| *word == lower) {
            Some(index) => Ok(self.min + u32::try_from(index).unwrap_or(0)),
            None => integer(text),
        }
    }
}

fn integer(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
        Ok(number) if number < 0 => Err(format!("negative number ({number}) not allowed: {text}")),
        Ok(number) => u32::try_from(number).map_err(|_| format!("failed to parse int from {text}: value out of range")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_and_bad_ones_explained() {
        for fine in ["*/5 * * * *", "0 0 1 1 *", "@daily", "@every 1h30m", "0 9-17 * * mon-FRI", "5/10 * ? * 0", "1,2,3 * * * *"] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        let cases = [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("error", "expected exactly 5 fields, found 1: [error]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("@never", "unrecognized descriptor: @never"),
        ];
        for (schedule, expected) in cases {
            assert_eq!(check(schedule), Err(expected.to_owned()), "{schedule}");
        }
    }
}
