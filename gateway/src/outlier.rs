//! Whether a backend that fails requests is worse than the others: pure rules over counts.
//!
//! A request can be what is wrong as well as a backend. So what counts is how a backend does beside
//! the others: where all fail alike, leaving one out would help nobody.

/// Failures in a row before a backend is thought of as failing.
const STREAK: u32 = 3;

/// How likely chance may be to explain them, were it as good as the best of the others.
const CHANCE: f64 = 1e-4;

/// How a backend did lately.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    /// Failures in a row.
    pub(crate) streak: u32,
    /// How many answers of the others were good since the first of them.
    pub(crate) others_good: u64,
}

/// The others, at this moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Others {
    /// Answers that were good, ever.
    pub(crate) good: u64,
    /// The share of failures of the best of them, from 0 to 1.
    pub(crate) best: Option<f64>,
    /// Those that are given requests.
    pub(crate) serving: usize,
    pub(crate) ejected: usize,
}

/// Whether requests are to be kept from it.
pub(crate) fn is_outlier(record: Record, others: &Others) -> bool {
    let Some(best) = others.best else {
        return false;
    };
    let streak = i32::try_from(record.streak).unwrap_or(i32::MAX);
    record.streak >= STREAK
        && record.others_good > 0
        && best.powi(streak) <= CHANCE
        && may_leave(others)
}

/// At most half of all are left out, and never the last one.
fn may_leave(others: &Others) -> bool {
    let all = 1 + others.serving + others.ejected;
    others.serving > 0 && others.ejected < (all / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILING: Record = Record {
        streak: 3,
        others_good: 1,
    };

    fn others(best: f64, serving: usize, ejected: usize) -> Others {
        Others {
            good: 1,
            best: Some(best),
            serving,
            ejected,
        }
    }

    #[test]
    fn one_that_fails_alone_is_found_by_its_third_failure() {
        assert!(is_outlier(FAILING, &others(0.0, 2, 0)));
        let twice = Record {
            streak: 2,
            ..FAILING
        };
        assert!(!is_outlier(twice, &others(0.0, 2, 0)));
    }

    #[test]
    fn where_all_fail_none_is_to_blame() {
        let often = Record {
            streak: 50,
            ..FAILING
        };
        assert!(!is_outlier(often, &others(1.0, 2, 0)));
        let unknown = Record {
            others_good: 0,
            ..often
        };
        assert!(!is_outlier(unknown, &others(0.0, 2, 0)));
    }

    #[test]
    fn what_chance_explains_is_no_fault() {
        // Half of what the others are asked fails as well.
        for (streak, expected) in [(3, false), (13, false), (14, true)] {
            let record = Record { streak, ..FAILING };
            assert_eq!(is_outlier(record, &others(0.5, 2, 0)), expected, "{streak}");
        }
    }

    #[test]
    fn at_most_half_are_left_out_and_never_the_last() {
        for (serving, ejected, expected) in [
            (0, 0, false),
            (0, 1, false),
            (1, 0, true),
            (1, 1, false),
            (2, 0, true),
            (2, 1, true),
            (1, 2, false),
        ] {
            let found = is_outlier(FAILING, &others(0.0, serving, ejected));
            assert_eq!(found, expected, "{serving} serve, {ejected} are ejected");
        }
        assert!(!is_outlier(FAILING, &Others::default()));
    }
}
