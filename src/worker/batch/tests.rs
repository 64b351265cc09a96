//! The scheduler over a scripted engine: tokens are bytes, answers are looked up, and every batch is kept for inspection.

use super::*;
use crate::worker::engine::{Limits, Markup, Vocabulary};
use crate::worker::queue::{Ask, Generation, Queue, WAITING_MAX, queue};
use crate::worker::sampler::Sampling;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake};

const END: Token = 256;
const VOCABULARY: usize = 257;

struct Bytes;

impl Vocabulary for Bytes {
    fn size(&self) -> usize {
        VOCABULARY
    }

    fn tokenize(&self, text: &str, _: Markup) -> Result<Vec<Token>, EngineError> {
        Ok(text.bytes().map(Token::from).collect())
    }

    fn piece(&self, token: Token, _: bool, into: &mut Vec<u8>) {
        into.extend(u8::try_from(token));
    }

    fn ends(&self) -> &[Token] {
        &[END]
    }
}

/// What happens inside a decode, after its first half.
type During = Box<dyn FnMut() + Send>;

struct Scripted {
    limits: Limits,
    /// By the prompt.
    answers: HashMap<Vec<Token>, Vec<Token>>,
    held: Vec<Vec<Token>>,
    batches: Vec<Vec<Row>>,
    logits: Vec<f32>,
    wanted: HashMap<usize, (u32, usize)>,
    during: Option<During>,
    failing: bool,
    not_a_number: bool,
}

impl Scripted {
    fn new(sequences: u32, context: u32) -> Self {
        Scripted {
            limits: Limits { sequences, context, rows: 512 },
            answers: HashMap::new(),
            held: vec![Vec::new(); sequences as usize],
            batches: Vec::new(),
            logits: vec![0.0; VOCABULARY],
            wanted: HashMap::new(),
            during: None,
            failing: false,
            not_a_number: false,
        }
    }
}

impl Engine for Scripted {
    fn vocabulary(&self) -> &dyn Vocabulary {
        &Bytes
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn decode(&mut self, rows: &[Row], abort: &(dyn Fn() -> bool + Sync)) -> Result<(), EngineError> {
        assert!(!rows.is_empty() && rows.len() <= self.limits.rows);
        self.batches.push(rows.to_vec());
        self.wanted.clear();
        if self.failing {
            return Err(EngineError::Decode(-3));
        }
        if let Some(during) = &mut self.during {
            during();
        }
        if abort() {
            return Err(EngineError::Aborted);
        }
        for (at, row) in rows.iter().enumerate() {
            let held = &mut self.held[row.sequence as usize];
            assert_eq!(held.len(), row.position as usize, "positions follow one another");
            assert!(row.position < self.limits.context);
            held.push(row.token);
            if row.logits {
                self.wanted.insert(at, (row.sequence, held.len()));
            }
        }
        Ok(())
    }

    fn logits(&mut self, row: usize) -> Result<&mut [f32], EngineError> {
        let (sequence, length) = self.wanted[&row];
        let held = &self.held[sequence as usize][..length];
        let next = (1..=length)
            .find_map(|prompt| self.answers.get(&held[..prompt])?.get(length - prompt).copied())
            .unwrap_or(END);
        self.logits.fill(if self.not_a_number { f32::NAN } else { 0.0 });
        if !self.not_a_number {
            self.logits[next as usize] = 9.0;
        }
        Ok(&mut self.logits)
    }

    fn forget(&mut self, sequence: u32, from: u32) -> Result<(), EngineError> {
        self.held[sequence as usize].truncate(from as usize);
        Ok(())
    }
}

struct Bench {
    scheduler: Scheduler<Scripted>,
    queue: Queue,
    incoming: mpsc::Receiver<Work>,
    stop: CancellationToken,
}

fn bench(sequences: u32, context: u32) -> Bench {
    let (queue, incoming) = queue();
    let stop = CancellationToken::new();
    Bench {
        scheduler: Scheduler::new(Scripted::new(sequences, context), stop.clone()),
        queue,
        incoming,
        stop,
    }
}

fn tokens(text: &str) -> Vec<Token> {
    text.bytes().map(Token::from).collect()
}

fn ask(prompt: &str) -> Ask {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    Ask { prompt: tokens(prompt), sampling, new_tokens_max: 64, ..Ask::default() }
}

impl Bench {
    fn teach(&mut self, prompt: &str, answer: &str) {
        self.scheduler.engine.answers.insert(tokens(prompt), tokens(answer));
    }

    fn submit(&mut self, ask: Ask) -> Generation {
        let generation = self.queue.submit(ask).unwrap();
        while let Ok(work) = self.incoming.try_recv() {
            self.scheduler.waiting.push_back(work);
        }
        generation
    }

    /// Rows of the last batch, by sequence.
    fn last_batch(&self) -> Vec<usize> {
        let mut counts = vec![0; self.scheduler.slots.len()];
        for row in self.scheduler.engine.batches.last().into_iter().flatten() {
            counts[row.sequence as usize] += 1;
        }
        counts
    }

    fn settle(&mut self) {
        while !self.scheduler.is_idle() {
            self.scheduler.step();
        }
    }

    fn busy(&self) -> usize {
        self.scheduler.views().borrow().iter().filter(|view| view.busy).count()
    }
}

/// All there is to read now: the texts, then the end.
fn read(generation: &mut Generation) -> (Vec<String>, Option<Event>) {
    let mut texts = Vec::new();
    loop {
        match generation.now() {
            Some(Event::Text { text, .. }) => texts.push(text),
            Some(Event::Started | Event::Prompt { .. }) => {}
            end => return (texts, end),
        }
    }
}

fn finish(event: Option<Event>) -> Finish {
    match event {
        Some(Event::Done(outcome)) => outcome.finish,
        other => panic!("not done: {other:?}"),
    }
}

#[test]
fn an_answer_comes_token_by_token_and_ends_as_the_model_ends_it() {
    let mut bench = bench(1, 64);
    bench.teach("hi", "ho!");
    let mut generation = bench.submit(ask("hi"));
    bench.settle();
    let (texts, end) = read(&mut generation);
    assert_eq!(texts, ["h", "o", "!"]);
    let Some(Event::Done(outcome)) = end else { panic!("{end:?}") };
    assert_eq!((outcome.finish, outcome.prompt_tokens, outcome.new_tokens), (Finish::End, 2, 4));
    assert!(bench.scheduler.engine.held[0].is_empty(), "the sequence is forgotten");
}

#[test]
fn who_is_told_that_his_answer_has_started_finds_his_slot_busy() {
    /// Notes how many slots are shown busy at the moment that somebody is told something.
    struct Told {
        views: watch::Receiver<Vec<SlotView>>,
        busy: Mutex<Vec<usize>>,
    }
    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            let busy = self.views.borrow().iter().filter(|view| view.busy).count();
            self.busy.lock().unwrap().push(busy);
        }
    }
    let mut bench = bench(1, 64);
    let told = Arc::new(Told { views: bench.scheduler.views(), busy: Mutex::default() });
    let mut generation = bench.submit(ask("hi"));
    let next = pin!(generation.next());
    assert!(next.poll(&mut Context::from_waker(&told.clone().into())).is_pending());
    bench.scheduler.admit();
    assert_eq!(*told.busy.lock().unwrap(), [1]);
}

#[test]
fn running_streams_go_first_and_prompts_share_the_rest_of_a_bounded_step() {
    let mut bench = bench(3, 4_096);
    bench.teach("run", &"x".repeat(60));
    let _running = bench.submit(ask("run"));
    bench.scheduler.step();
    bench.teach(&"a".repeat(900), "and on");
    let (_long, _longer) = (bench.submit(ask(&"a".repeat(900))), bench.submit(ask(&"b".repeat(2_000))));
    for _ in 0..7 {
        bench.scheduler.step();
        assert_eq!(bench.last_batch(), [1, PROMPT_TOKENS_MAX / 2, PROMPT_TOKENS_MAX / 2]);
    }
    bench.scheduler.step();
    assert_eq!(bench.last_batch(), [1, 4, 252], "what the first no longer needs the other gets");
    bench.scheduler.step();
    assert_eq!(bench.last_batch(), [1, 1, 256], "the first has read its prompt and generates");
}

#[test]
fn shares_use_all_room_and_the_odd_token_goes_round() {
    assert_eq!(share(&[1, 1, 0], 512, 0), [1, 1, 0]);
    assert_eq!(share(&[300, 0, 1], 512, 0), [256, 0, 1]);
    assert_eq!(share(&[2, 900, 900], 512, 0), [2, 127, 127]);
    assert_eq!(share(&[900, 900, 900], 512, 0).iter().sum::<usize>(), PROMPT_TOKENS_MAX);
    assert_ne!(share(&[900, 900, 900], 512, 0), share(&[900, 900, 900], 512, 1));
    assert_eq!(share(&[1, 1, 5], 2, 0), [1, 1, 0], "rows_max holds");
    assert_eq!(share(&[], 512, 3), [0; 0]);
}

#[test]
fn a_client_that_leaves_inside_its_prompt_frees_the_slot_with_the_next_step() {
    let mut bench = bench(2, 4_096);
    let long = bench.submit(ask(&"a".repeat(3_000)));
    bench.scheduler.step();
    assert_eq!((bench.busy(), bench.last_batch()), (1, vec![256, 0]));
    drop(long);
    bench.scheduler.step();
    assert_eq!((bench.busy(), bench.scheduler.engine.batches.len()), (0, 1), "no further batch was decoded");
    assert!(bench.scheduler.engine.held[0].is_empty());
}

#[test]
fn a_decode_is_aborted_when_all_its_clients_have_left() {
    let mut bench = bench(2, 4_096);
    let mut gone = Some(bench.submit(ask(&"a".repeat(3_000))));
    bench.scheduler.engine.during = Some(Box::new(move || drop(gone.take())));
    bench.scheduler.step();
    assert_eq!(bench.busy(), 0, "free within the very step");
    assert!(bench.scheduler.engine.held[0].is_empty());
}

#[test]
fn one_client_that_leaves_does_not_disturb_another() {
    let mut bench = bench(2, 4_096);
    bench.teach("stay", "all of it");
    let mut gone = Some(bench.submit(ask(&"a".repeat(3_000))));
    let mut stays = bench.submit(ask("stay"));
    bench.scheduler.engine.during = Some(Box::new(move || drop(gone.take())));
    bench.scheduler.step();
    assert_eq!(bench.busy(), 1);
    bench.settle();
    let (texts, end) = read(&mut stays);
    assert_eq!((texts.concat().as_str(), finish(end)), ("all of it", Finish::End));
}

#[test]
fn stop_strings_and_limits_end_an_answer_with_their_reason() {
    let mut bench = bench(3, 64);
    for prompt in ["stop", "limit", "past"] {
        bench.teach(prompt, "one##two");
    }
    let mut stopped = bench.submit(Ask { stops: vec!["##".into()], ..ask("stop") });
    let mut limited = bench.submit(Ask { new_tokens_max: 5, ..ask("limit") });
    let mut past = bench.submit(Ask { ignore_end: true, new_tokens_max: 12, ..ask("past") });
    bench.settle();
    let (texts, end) = read(&mut stopped);
    assert_eq!((texts.concat().as_str(), finish(end)), ("one", Finish::Stop("##".into())));
    let (texts, end) = read(&mut limited);
    assert_eq!((texts.concat().as_str(), finish(end)), ("one##", Finish::Length));
    let (_, end) = read(&mut past);
    let Some(Event::Done(outcome)) = end else { panic!("{end:?}") };
    assert_eq!((outcome.finish, outcome.new_tokens), (Finish::Length, 12));
}

#[test]
fn a_full_context_ends_an_answer() {
    let mut bench = bench(1, 8);
    bench.teach("1234", "567890");
    let mut generation = bench.submit(ask("1234"));
    bench.settle();
    let (texts, end) = read(&mut generation);
    assert_eq!((texts.concat().as_str(), finish(end)), ("5678", Finish::Length));
}

#[test]
fn characters_split_over_tokens_come_out_whole() {
    let mut bench = bench(1, 64);
    bench.teach("bee", "a🐝ü");
    let mut generation = bench.submit(ask("bee"));
    bench.settle();
    assert_eq!(read(&mut generation).0, ["a", "🐝", "ü"]);
}

#[test]
fn every_token_is_told_with_its_id_when_asked_for() {
    let mut bench = bench(1, 64);
    bench.teach("bee", "🐝");
    let mut generation = bench.submit(Ask { every_token: true, ..ask("bee") });
    bench.settle();
    let mut ids = Vec::new();
    while let Some(event) = generation.now() {
        if let Event::Text { tokens, .. } = event {
            ids.extend(tokens);
        }
    }
    assert_eq!(ids, [&tokens("🐝")[..], &[END]].concat());
}

#[test]
fn more_requests_than_slots_all_get_their_own_answer() {
    let mut bench = bench(3, 512);
    let mut generations = Vec::new();
    for n in 0..40 {
        let prompt = format!("{n}:{}", "p".repeat(n * 7 % 300));
        let answer: String = (0..n % 23).map(|k| char::from(b'a' + ((n + k) % 26) as u8)).collect();
        bench.teach(&prompt, &answer);
        generations.push((answer, bench.submit(ask(&prompt))));
    }
    bench.settle();
    for (answer, generation) in &mut generations {
        let (texts, end) = read(generation);
        assert_eq!((&texts.concat(), finish(end)), (&*answer, Finish::End));
    }
}

#[test]
fn a_full_queue_says_so_and_a_client_that_leaves_makes_room() {
    let mut bench = bench(1, 64);
    let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| bench.submit(ask("x"))).collect();
    let failure = bench.queue.submit(ask("x")).unwrap_err();
    assert_eq!((failure.code, &failure.details["retry_after"]), (Code::AllSlotsBusy, &serde_json::json!(1)));
    waiting.pop();
    bench.scheduler.step();
    // One got the slot, one has left.
    let _both = (bench.submit(ask("x")), bench.submit(ask("x")));
    assert!(bench.queue.submit(ask("x")).is_err());
}

#[test]
fn a_failed_decode_fails_its_requests_and_no_others() {
    let mut bench = bench(1, 64);
    bench.teach("good", "yes");
    let mut bad = bench.submit(ask("bad"));
    bench.scheduler.engine.failing = true;
    bench.scheduler.step();
    let Some(Event::Failed(failure)) = read(&mut bad).1 else { panic!("not failed") };
    assert_eq!(failure.code, Code::Internal);
    bench.scheduler.engine.failing = false;
    let mut good = bench.submit(ask("good"));
    bench.settle();
    assert_eq!(read(&mut good).0.concat(), "yes");
}

#[test]
fn a_model_whose_output_is_no_number_is_reported() {
    let mut bench = bench(1, 64);
    bench.scheduler.engine.not_a_number = true;
    let mut generation = bench.submit(ask("x"));
    bench.settle();
    let Some(Event::Failed(failure)) = read(&mut generation).1 else { panic!("not failed") };
    assert_eq!(failure.code, Code::InvalidModel);
}

#[tokio::test]
async fn a_stop_fails_what_runs_and_what_waits() {
    let mut bench = bench(1, 4_096);
    let mut running = bench.submit(ask(&"a".repeat(2_000)));
    let mut waiting = bench.submit(ask("x"));
    bench.scheduler.step();
    bench.stop.cancel();
    bench.scheduler.run(bench.incoming).await;
    for generation in [&mut running, &mut waiting] {
        let Some(Event::Failed(failure)) = read(generation).1 else { panic!("not failed") };
        assert_eq!(failure.code, Code::ShuttingDown);
    }
}
