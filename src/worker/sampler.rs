//! Choosing the next token. Pure: logits, the recent tokens and a counter in, a token out.
//!
//! The order is llama-server's: penalties, top_k, top_p, min_p, temperature, draw. Randomness is counter-based (Philox): the
//! n-th draw of a seed is a function of (seed, n), so a stream goes on elsewhere by knowing how many draws it has made,
//! and no state has to travel. Greedy choices draw nothing.
//!
//! Vocabularies reach 262,144 entries, so nothing here sorts one: candidates are found by selection, and grow in
//! steps only while top_p needs more of them.

use super::engine::Token;

/// llama-server's `repeat_last_n`: how far back penalties look.
pub const PENALTY_WINDOW: usize = 64;
/// Candidates taken first when top_k sets no bound; four times more whenever top_p has not had enough.
const CANDIDATES_FIRST: usize = 256;

#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 or less: always the likeliest token.
    pub temperature: f32,
    /// 0 or less: no limit.
    pub top_k: i32,
    pub top_p: f32,
    pub min_p: f32,
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub seed: u64,
}

impl Default for Sampling {
    /// llama-server's defaults.
    fn default() -> Self {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: Token,
    logit: f32,
}

#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    draws: u64,
    /// Reused from token to token.
    candidates: Vec<Candidate>,
}

impl Sampler {
    pub fn new(sampling: Sampling) -> Self {
        Sampler { sampling, draws: 0, candidates: Vec::new() }
    }

    /// Random numbers used so far.
    pub fn draws(&self) -> u64 {
        self.draws
    }

    /// The next token, or `None` when no logit is a number (a broken model). `recent` are the tokens before it, newest last.
    pub fn choose(&mut self, logits: &mut [f32], recent: &[Token]) -> Option<Token> {
        self.penalize(logits, recent);
        if self.sampling.temperature <= 0.0 {
            return likeliest(logits);
        }
        self.select(logits);
        self.draw()
    }

    fn penalize(&self, logits: &mut [f32], recent: &[Token]) {
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        if repeat_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0 {
            return;
        }
        let mut window = recent[recent.len().saturating_sub(PENALTY_WINDOW)..].to_vec();
        window.sort_unstable();
        for seen in window.chunk_by(|a, b| a == b) {
            let Some(logit) = usize::try_from(seen[0]).ok().and_then(|at| logits.get_mut(at)) else {
                continue;
            };
            // Dividing a negative logit would make the token likelier.
            *logit = if *logit <= 0.0 { *logit * repeat_penalty } else { *logit / repeat_penalty };
            *logit -= seen.len() as f32 * frequency_penalty + presence_penalty;
        }
    }

    /// Fills `candidates`, likeliest first, with what top_k, top_p and min_p leave.
    fn select(&mut self, logits: &[f32]) {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let bounded = usize::try_from(top_k).ok().filter(|k| *k > 0 && *k < logits.len());
        match bounded {
            Some(k) => {
                take_largest(logits, k, &mut self.candidates);
                let keep = nucleus(&self.candidates, weight(self.candidates.iter().map(|c| c.logit)), top_p);
                self.candidates.truncate(keep.unwrap_or(self.candidates.len()));
            }
            None => {
                let total = weight(logits.iter().copied());
                let mut take = CANDIDATES_FIRST;
                loop {
                    // Nothing can be cut if top_p and min_p are off, so everything is a candidate at once.
                    let all = take >= logits.len() || (top_p >= 1.0 && min_p <= 0.0);
                    take_largest(logits, if all { logits.len() } else { take }, &mut self.candidates);
                    if let Some(keep) = nucleus(&self.candidates, total, top_p) {
                        self.candidates.truncate(keep);
                        break;
                    }
                    let below_min_p = match (self.candidates.first(), self.candidates.last()) {
                        (Some(first), Some(last)) => last.logit < first.logit + min_p.ln(),
                        _ => true,
                    };
                    if all || below_min_p {
                        break;
                    }
                    take *= 4;
                }
            }
        }
        if let Some(first) = self.candidates.first().copied() {
            let floor = first.logit + min_p.ln();
            let keep = self.candidates.partition_point(|candidate| candidate.logit >= floor).max(1);
            self.candidates.truncate(keep);
        }
    }

    /// Draws one of the candidates by their probability at the temperature.
    fn draw(&mut self) -> Option<Token> {
        let first = *self.candidates.first()?;
        let uniform = uniform(self.sampling.seed, self.draws);
        self.draws += 1;
        let scale = 1.0 / f64::from(self.sampling.temperature);
        let odds =
            |candidate: &Candidate| ((f64::from(candidate.logit) - f64::from(first.logit)) * scale).exp();
        let mut left = uniform * self.candidates.iter().map(odds).sum::<f64>();
        for candidate in &self.candidates {
            left -= odds(candidate);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        // Rounding may leave a crumb; it belongs to the last one.
        self.candidates.last().map(|candidate| candidate.token)
    }
}

/// The first of the largest logits. Not-a-number never wins.
pub fn likeliest(logits: &[f32]) -> Option<Token> {
    let mut best: Option<(usize, f32)> = None;
    for (at, logit) in logits.iter().copied().enumerate() {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, best)| best) {
            best = Some((at, logit));
        }
    }
    best.map(|(at, _)| at as Token)
}

/// The `count` largest logits in descending order, equal ones by their token. One pass with a rising floor: the buffer
/// is cut back by selection whenever it is full, so the work stays linear.
fn take_largest(logits: &[f32], count: usize, into: &mut Vec<Candidate>) {
    into.clear();
    let descending = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token));
    let room = count.saturating_mul(4).max(1024);
    let mut floor = f32::NEG_INFINITY;
    for (at, logit) in logits.iter().copied().enumerate() {
        // Also false for what is not a number. Ties at the floor lose to the lower tokens already taken.
        if logit > floor {
            into.push(Candidate { token: at as Token, logit });
            if into.len() == room {
                into.select_nth_unstable_by(count - 1, descending);
                into.truncate(count);
                floor = into[count - 1].logit;
            }
        }
    }
    if into.len() > count {
        into.select_nth_unstable_by(count - 1, descending);
        into.truncate(count);
    }
    into.sort_unstable_by(descending);
}

/// How many of the candidates make up `top_p` of the total weight; `None` if all of them do not.
fn nucleus(candidates: &[Candidate], total: Weight, top_p: f32) -> Option<usize> {
    if top_p >= 1.0 {
        return None;
    }
    let wanted = f64::from(top_p) * total.sum;
    let mut sum = 0.0;
    for (n, candidate) in candidates.iter().enumerate() {
        sum += f64::from(candidate.logit - total.largest).exp();
        if sum >= wanted {
            return Some(n + 1);
        }
    }
    None
}

#[derive(Debug, Clone, Copy)]
struct Weight {
    largest: f32,
    /// Of the exponentials of the distances from the largest.
    sum: f64,
}

fn weight(logits: impl Iterator<Item = f32> + Clone) -> Weight {
    let largest = logits.clone().fold(f32::NEG_INFINITY, f32::max);
    let sum = logits.filter(|l| !l.is_nan()).map(|l| f64::from((l - largest).exp())).sum();
    Weight { largest, sum }
}

/// The n-th number in [0, 1) of a seed.
fn uniform(seed: u64, draw: u64) -> f64 {
    let [low, high, ..] =
        philox([draw as u32, (draw >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const ROUNDS: usize = 10;
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Logits like a model's: a few high, a long tail.
    fn logits(count: usize, salt: u64) -> Vec<f32> {
        (0..count as u64).map(|n| (uniform(salt, n).ln() * -2.0) as f32 - 3.0).collect()
    }

    fn off() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() }
    }

    /// The same rules written the obvious way: everything sorted, every probability computed.
    fn reference(logits: &[f32], s: &Sampling) -> Vec<(Token, f64)> {
        let mut all: Vec<(Token, f64)> =
            logits.iter().enumerate().map(|(t, l)| (t as Token, f64::from(*l))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if s.top_k > 0 {
            all.truncate(s.top_k as usize);
        }
        let top = all[0].1;
        if s.top_p < 1.0 {
            let total: f64 = all.iter().map(|(_, l)| (l - top).exp()).sum();
            let mut sum = 0.0;
            let keep = all.iter().position(|(_, l)| {
                sum += (l - top).exp() / total;
                sum >= f64::from(s.top_p)
            });
            all.truncate(keep.map_or(all.len(), |n| n + 1));
        }
        if s.min_p > 0.0 {
            all.retain(|(_, l)| *l >= top + f64::from(s.min_p).ln());
        }
        let odds = |l: f64| ((l - top) / f64::from(s.temperature)).exp();
        let total: f64 = all.iter().map(|(_, l)| odds(*l)).sum();
        all.into_iter().map(|(t, l)| (t, odds(l) / total)).collect()
    }

    #[test]
    fn philox_gives_the_published_numbers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn the_candidates_are_those_of_the_plain_rules() {
        for (n, salt) in [(50, 1), (3_000, 2), (40_000, 3)] {
            let logits = logits(n, salt);
            for (top_k, top_p, min_p) in [
                (40, 0.95, 0.05),
                (0, 0.95, 0.05),
                (0, 0.9, 0.0),
                (0, 1.0, 0.02),
                (0, 1.0, 0.0),
                (5, 1.0, 0.0),
                (1, 0.5, 0.5),
                (0, 0.999, 0.0),
                (100_000, 0.3, 0.9),
            ] {
                let sampling = Sampling { top_k, top_p, min_p, temperature: 0.7, ..Sampling::default() };
                let wanted: Vec<Token> = reference(&logits, &sampling).iter().map(|(t, _)| *t).collect();
                let mut sampler = Sampler::new(sampling);
                sampler.select(&logits);
                let got: Vec<Token> = sampler.candidates.iter().map(|c| c.token).collect();
                assert_eq!(got, wanted, "{n} logits, top_k {top_k} top_p {top_p} min_p {min_p}");
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        const DRAWS: usize = 40_000;
        let logits = logits(500, 9);
        let sampling = Sampling { temperature: 1.3, ..Sampling::default() };
        let expected = reference(&logits, &sampling);
        let mut sampler = Sampler::new(Sampling { seed: 11, ..sampling });
        let mut seen: HashMap<Token, usize> = HashMap::new();
        for _ in 0..DRAWS {
            *seen.entry(sampler.choose(&mut logits.clone(), &[]).unwrap()).or_default() += 1;
        }
        // Pearson's statistic; the mean is the degrees of freedom, its deviation sqrt(2 n): six of them never happen by chance.
        let freedom = expected.len() as f64 - 1.0;
        let statistic: f64 = expected
            .iter()
            .map(|(token, p)| {
                let (got, wanted) = (*seen.get(token).unwrap_or(&0) as f64, p * DRAWS as f64);
                (got - wanted).powi(2) / wanted
            })
            .sum();
        assert!(
            statistic < freedom + 6.0 * (2.0 * freedom).sqrt(),
            "{statistic} at {freedom} degrees of freedom"
        );
        assert!(seen.keys().all(|token| expected.iter().any(|(t, _)| t == token)));
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_draws_nothing() {
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() });
        assert_eq!(sampler.choose(&mut [0.1, 3.0, 3.0, f32::NAN], &[]), Some(1));
        assert_eq!(sampler.draws(), 0);
    }

    #[test]
    fn the_nth_draw_depends_on_seed_and_count_alone() {
        let logits = logits(2_000, 4);
        let sampling = Sampling { seed: 77, ..off() };
        let mut whole = Sampler::new(sampling.clone());
        let all: Vec<_> = (0..20).map(|_| whole.choose(&mut logits.clone(), &[])).collect();
        let mut rest = Sampler { draws: 8, ..Sampler::new(sampling.clone()) };
        let tail: Vec<_> = (0..12).map(|_| rest.choose(&mut logits.clone(), &[])).collect();
        assert_eq!(all[8..], tail[..]);
        let mut other = Sampler::new(Sampling { seed: 78, ..sampling });
        assert_ne!(all, (0..20).map(|_| other.choose(&mut logits.clone(), &[])).collect::<Vec<_>>());
    }

    #[test]
    fn penalties_count_what_the_window_holds() {
        let sampling = Sampling {
            repeat_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            temperature: 0.0,
            ..Sampling::default()
        };
        let mut logits = [4.0, -4.0, 1.0, 1.0];
        let mut recent = vec![3; 1];
        recent.extend([2; PENALTY_WINDOW - 3]);
        recent.extend([0, 0, 1]);
        Sampler::new(sampling).choose(&mut logits, &recent);
        // Token 3 has left the window.
        assert_eq!(logits, [4.0 / 2.0 - 0.5 - 0.5, -4.0 * 2.0 - 0.25 - 0.5, 0.5 - 61.0 * 0.25 - 0.5, 1.0]);
    }

    #[test]
    fn logits_that_are_no_numbers_choose_nothing() {
        assert_eq!(Sampler::new(off()).choose(&mut [f32::NAN; 8], &[]), None);
        assert_eq!(Sampler::new(Sampling::default()).choose(&mut [f32::NAN; 100], &[]), None);
        assert_eq!(likeliest(&[f32::NAN, f32::NEG_INFINITY]), None);
    }
}
