//! Speed of each stage in one run, as GB/s of plain bytes and as a ratio to memcpy measured beside it.
//!
//! `cargo run --release -p codec --example codec_speed [MiB per object] [rounds]`
//!
//! Rounds are interleaved and the median is printed, so a busy machine shifts all lines alike: compare ratios.

use std::hint::black_box;
use std::time::Instant;

use codec::{
    Compression, Compressor, Decoder, EncodeParams, Encoder, Engine, ErasureCode, FrameInfo,
    FrameSize, Level, NamespaceKey, NamespaceKeys, ObjectBinding, ObjectSeal, Shape, StoredObject,
    Suite, Vandermonde, crc32c,
};

type Stage<'a> = (String, Box<dyn FnMut() + 'a>);

const FRAME: usize = 16 << 10;
const BINDING: ObjectBinding<'static> = ObjectBinding { object: b"speed", attempt: [1; 16] };

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|text| text.parse::<usize>().ok());
    let len = arguments.next().unwrap_or(4).clamp(1, 64) << 20;
    let rounds = arguments.next().unwrap_or(15).clamp(1, 1000);
    let noise = noise(len);
    let mixed: Vec<u8> = noise.iter().map(|byte| byte & 15).collect();
    let mut copy = vec![0u8; len];
    let mut stages: Vec<Stage<'_>> = vec![(
        "memcpy".into(),
        Box::new(|| {
            copy.copy_from_slice(black_box(&noise));
            black_box(&copy);
        }),
    )];
    stages.push((
        "crc32c".into(),
        Box::new(|| {
            black_box(crc32c(black_box(&noise)));
        }),
    ));
    stages.push(digest(&noise));
    for engine in [Engine::AwsLc, Engine::Reference] {
        stages.push(seal(engine, &noise));
        stages.push(open(engine, &noise));
    }
    stages.push(zstd("probe of noise", Compression::Adaptive(Level::DEFAULT), &noise));
    stages.push(zstd("zstd 1, noise", Compression::Always(Level::DEFAULT), &noise));
    stages.push(zstd("zstd 1, half entropy", Compression::Always(Level::DEFAULT), &mixed));
    for (k, m) in [(2, 2), (4, 2), (8, 3)] {
        stages.push(parity(k, m, &noise));
        stages.push(rebuild(k, m, &noise));
    }
    stages.push(whole_encode("encode 4+2, all raw", Compression::Off, &noise));
    stages.push(whole_encode("encode 4+2, zstd 1", Compression::Always(Level::DEFAULT), &mixed));
    stages.push(whole_decode(&noise));

    let mut times = vec![Vec::with_capacity(rounds); stages.len()];
    for _ in 0..rounds {
        for ((_, run), times) in stages.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run();
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
    println!("{:<26} {:>8} {:>14}", "stage", "GB/s", "time / memcpy");
    for ((name, _), seconds) in stages.iter().zip(&medians) {
        #[expect(clippy::cast_precision_loss, reason = "a speed for people")]
        let speed = len as f64 / seconds / 1e9;
        println!("{name:<26} {speed:>8.2} {:>14.2}", seconds / medians[0]);
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()[7]
        })
        .collect()
}

fn keys(engine: Engine) -> NamespaceKeys {
    NamespaceKeys::new(&NamespaceKey::new([7; 32]), engine)
}

fn object_seal(engine: Engine, plain: &[u8]) -> ObjectSeal {
    let len = u32::try_from(plain.len()).expect("at most 64 MiB");
    let size = FrameSize::DEFAULT;
    ObjectSeal::new(&keys(engine), Suite::Aes256Gcm, size, len, &BINDING).expect("a short id")
}

fn frames() -> impl Iterator<Item = FrameInfo> {
    let bytes = FrameSize::DEFAULT.bytes();
    (0..).map(move |i| FrameInfo::new(Suite::Aes256Gcm, i, bytes, bytes))
}

fn sealed(seal: &ObjectSeal, plain: &[u8]) -> Vec<u8> {
    let mut stream = vec![0; plain.len() / FRAME * (FRAME + 16)];
    for ((frame, body), stored) in
        frames().zip(plain.chunks(FRAME)).zip(stream.chunks_mut(FRAME + 16))
    {
        seal.seal(&frame, body, stored).expect("the lengths fit");
    }
    stream
}

fn seal(engine: Engine, plain: &[u8]) -> Stage<'_> {
    let seal = object_seal(engine, plain);
    let mut stored = vec![0; FRAME + 16];
    let run = move || {
        for (frame, body) in frames().zip(plain.chunks(FRAME)) {
            seal.seal(&frame, body, black_box(&mut stored)).expect("the lengths fit");
        }
    };
    (format!("seal, {engine:?}"), Box::new(run))
}

fn open(engine: Engine, plain: &[u8]) -> Stage<'_> {
    let seal = object_seal(engine, plain);
    let stream = sealed(&seal, plain);
    let mut body = vec![0; FRAME];
    let run = move || {
        for (frame, stored) in frames().zip(stream.chunks(FRAME + 16)) {
            seal.open(&frame, stored, black_box(&mut body)).expect("it was sealed so");
        }
    };
    (format!("open, {engine:?}"), Box::new(run))
}

fn digest(plain: &[u8]) -> Stage<'_> {
    let keys = keys(Engine::AwsLc);
    let mut scratch = Vec::new();
    let run = move || {
        black_box(keys.digest(&[black_box(plain)], &mut scratch));
    };
    ("plaintext digest".into(), Box::new(run))
}

fn zstd<'a>(name: &str, mode: Compression, plain: &'a [u8]) -> Stage<'a> {
    let mut compressor = Compressor::new(Level::DEFAULT).expect("zstd starts");
    let mut out = vec![0; FRAME];
    let run = move || {
        for frame in plain.chunks(FRAME) {
            black_box(compressor.try_compress(mode, frame, &mut out));
        }
    };
    (name.into(), Box::new(run))
}

fn code(k: u8, m: u8) -> Vandermonde {
    Vandermonde::new(Shape::new(k, m).expect("a small shape"))
}

fn parity(k: u8, m: u8, plain: &[u8]) -> Stage<'_> {
    let code = code(k, m);
    let len = plain.len() / usize::from(k);
    let data: Vec<&[u8]> = plain.chunks_exact(len).take(usize::from(k)).collect();
    let mut parity = vec![vec![0u8; len]; usize::from(m)];
    let run = move || {
        let mut out: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        code.encode(black_box(&data), &mut out).expect("the lengths fit");
    };
    (format!("parity {k}+{m}"), Box::new(run))
}

fn rebuild(k: u8, m: u8, plain: &[u8]) -> Stage<'_> {
    let code = code(k, m);
    let len = plain.len() / usize::from(k);
    let data: Vec<&[u8]> = plain.chunks_exact(len).take(usize::from(k)).collect();
    let mut parity = vec![vec![0u8; len]; usize::from(m)];
    let mut out: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    code.encode(&data, &mut out).expect("the lengths fit");
    let mut lost = vec![0u8; len];
    let run = move || {
        let have: Vec<(u8, &[u8])> = (0u8..)
            .zip(data.iter().copied().chain(parity.iter().map(Vec::as_slice)))
            .skip(1)
            .collect();
        code.reconstruct(len, &have, &mut [(0, &mut lost)]).expect("one loss is within m");
    };
    (format!("rebuild 1 of {k}+{m}"), Box::new(run))
}

fn whole_encode<'a>(name: &str, compression: Compression, plain: &'a [u8]) -> Stage<'a> {
    let (keys, code) = (keys(Engine::AwsLc), code(4, 2));
    let mut encoder = Encoder::new().expect("zstd starts");
    let run = move || {
        let params = EncodeParams {
            suite: Suite::Aes256Gcm,
            frame_size: FrameSize::DEFAULT,
            compression,
            keys: &keys,
            binding: BINDING,
            code: &code,
        };
        black_box(encoder.encode(&params, &[black_box(plain)]).expect("a good object"));
    };
    (name.into(), Box::new(run))
}

fn whole_decode(plain: &[u8]) -> Stage<'_> {
    let (keys, code) = (keys(Engine::AwsLc), code(4, 2));
    let params = EncodeParams {
        suite: Suite::Aes256Gcm,
        frame_size: FrameSize::DEFAULT,
        compression: Compression::Off,
        keys: &keys,
        binding: BINDING,
        code: &code,
    };
    let object =
        Encoder::new().expect("zstd starts").encode(&params, &[plain]).expect("a good object");
    let fragments: Vec<_> = object.fragments.iter().cloned().map(Some).collect();
    let seal = object_seal(Engine::AwsLc, plain);
    let mut decoder = Decoder::new().expect("zstd starts");
    let run = move || {
        let stored = StoredObject {
            table: &object.table,
            layout: &object.layout,
            fragments: &fragments,
            fragment_crcs: &object.fragment_crcs,
        };
        let range = 0..object.table.plain_len();
        black_box(decoder.decode(&seal, &stored, &code, range).expect("nothing is lost"));
    };
    ("decode 4+2, all raw".into(), Box::new(run))
}
