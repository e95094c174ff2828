//! The compressed data of a JPEG: whether they hold every block of the image. Its Huffman codes are
//! followed without computing pixels. Where they end early, decoders fill up with gray.

use super::decoder::MAX_PIXELS;

/// Padding bits that a careless encoder may have left out at the end of a scan.
const SPARE_BITS: u32 = 8;
/// More bytes than this after the last block show that a part of the data was overwritten.
const MOST_LEFT: usize = 64;

/// Decoders stop after a number of scans, too.
const MOST_SCANS: usize = 200;

/// The symbol and the length of each code of 16 bits; length 0 is no code.
pub type Table = Vec<(u8, u8)>;

/// A component of the colours, such as the luma.
pub struct Component {
    /// Its number in the file.
    pub id: u8,
    /// Blocks across in an MCU.
    pub h: usize,
    /// Blocks down in an MCU.
    pub v: usize,
    /// Blocks across and down, and blocks in a row of the MCUs.
    pub across: usize,
    down: usize,
    stride: usize,
    /// The coefficients of each block that are not 0, as bits: later scans refine them.
    nonzero: Vec<u64>,
}

/// A scan: its components with their tables, its coefficients, and whether it refines them.
pub struct Scan {
    /// The index of each component and those of its tables.
    pub parts: Vec<(usize, usize, usize)>,
    first: usize,
    last: usize,
    refines: bool,
}

/// What the headers of a JPEG say.
#[derive(Default)]
pub struct State {
    /// The codes of means.
    pub dc: [Table; 4],
    /// The codes of other coefficients.
    pub ac: [Table; 4],
    /// The components in the order of the frame.
    pub components: Vec<Component>,
    progressive: bool,
    /// MCUs in a row.
    pub mcus_across: usize,
    mcus_down: usize,
    /// MCUs between two restart markers; 0 if there are none.
    pub restart: usize,
}

/// Whether the data hold all blocks. Kinds of JPEG that are not known here, and damaged headers,
/// are left to the decoder: they count as complete.
pub fn holds_all_blocks(jpeg: &[u8]) -> bool {
    let mut state = State::default();
    let mut at = 2;
    let mut scans = 0;
    loop {
        while jpeg.get(at).is_some_and(|b| *b != 0xff) || jpeg.get(at + 1) == Some(&0xff) {
            at += 1;
        }
        let Some(&marker) = jpeg.get(at + 1) else { return true };
        match marker {
            0xd9 => return scans > 0 || state.components.is_empty(),
            0x00 | 0x01 | 0xd0..=0xd8 => {
                at += 2;
                continue;
            }
            _ => {}
        }
        let Some(length) = jpeg.get(at + 2..at + 4) else { return true };
        let end = at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        let Some(content) = jpeg.get(at + 4..end.max(at + 4)) else { return true };
        at = end.max(at + 4);
        let known = match marker {
            0xc4 => state.read_tables(content),
            0xc0..=0xc2 => state.read_frame(content, marker == 0xc2),
            0xc3 | 0xc5..=0xcf => None,
            0xdd => state.read_restart(content),
            0xda => {
                let Some(scan) = state.read_scan(content) else { return true };
                scans += 1;
                if scans > MOST_SCANS {
                    return true;
                }
                match state.follow(&scan, jpeg, at) {
                    Some(end) => at = end,
                    None => return false,
                }
                Some(())
            }
            _ => Some(()),
        };
        if known.is_none() {
            return true;
        }
    }
}

impl State {
    /// Reads the distance of restart markers; `None` if it is damaged, as for all of these.
    pub fn read_restart(&mut self, content: &[u8]) -> Option<()> {
        let bytes = content.get(..2)?;
        self.restart = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
        Some(())
    }

    /// Reads tables of codes.
    pub fn read_tables(&mut self, mut rest: &[u8]) -> Option<()> {
        while let Some((head, more)) = rest.split_at_checked(17) {
            let count: usize = head[1..].iter().map(|n| usize::from(*n)).sum();
            let (symbols, more) = more.split_at_checked(count)?;
            let mut table = vec![(0, 0); 1 << 16];
            let (mut start, mut symbols) = (0, symbols.iter());
            for (length, count) in (1u8..).zip(&head[1..]) {
                for symbol in symbols.by_ref().take(usize::from(*count)) {
                    let end = start + (1 << (16 - length));
                    table.get_mut(start..end)?.fill((*symbol, length));
                    start = end;
                }
            }
            let tables = if head[0] >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(head[0] & 15))? = table;
            rest = more;
        }
        Some(())
    }

    /// Reads the components, their sizes and that of the image.
    pub fn read_frame(&mut self, content: &[u8], progressive: bool) -> Option<()> {
        let side = |at: usize| {
            let bytes = content.get(at..at + 2)?;
            Some(usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))).filter(|n| *n > 0)
        };
        // A second frame, or a height that follows later.
        if !self.components.is_empty() || content.first() != Some(&8) {
            return None;
        }
        let (height, width) = (side(1)?, side(3)?);
        // The coefficients of a progressive image are all kept.
        let is_large = progressive && width as u64 * height as u64 > MAX_PIXELS;
        if is_large || !(1..=4).contains(content.get(5)?) {
            return None;
        }
        let parts = content.get(6..)?.chunks_exact(3).take(usize::from(content[5]));
        let factors: Vec<(u8, usize, usize)> =
            parts.map(|c| (c[0], usize::from(c[1] >> 4), usize::from(c[1] & 15))).collect();
        let h_max = factors.iter().map(|c| c.1).max()?;
        let v_max = factors.iter().map(|c| c.2).max()?;
        if factors.iter().any(|c| !(1..=4).contains(&c.1) || !(1..=4).contains(&c.2)) {
            return None;
        }
        self.progressive = progressive;
        self.mcus_across = width.div_ceil(8 * h_max);
        self.mcus_down = height.div_ceil(8 * v_max);
        for (id, h, v) in factors {
            let stride = self.mcus_across * h;
            let blocks = if progressive { stride * self.mcus_down * v } else { 0 };
            self.components.push(Component {
                id,
                h,
                v,
                across: (width * h).div_ceil(h_max).div_ceil(8),
                down: (height * v).div_ceil(v_max).div_ceil(8),
                stride,
                nonzero: vec![0; blocks],
            });
        }
        Some(())
    }

    /// Reads the header of a scan.
    pub fn read_scan(&self, content: &[u8]) -> Option<Scan> {
        let count = usize::from(*content.first()?);
        let (parts, rest) = content.get(1..)?.split_at_checked(2 * count)?;
        let [first, last, approximation, ..] = *rest else { return None };
        let (mut first, mut last) = (usize::from(first), usize::from(last));
        if !self.progressive {
            (first, last) = (0, 63);
        }
        let refines = self.progressive && approximation >> 4 > 0;
        if last > 63 || first > last || count == 0 {
            return None;
        }
        let part = |c: &[u8]| {
            let index = self.components.iter().position(|known| known.id == c[0])?;
            let (dc, ac) = (usize::from(c[1] >> 4), usize::from(c[1] & 15));
            let has_dc = first > 0 || refines || !self.dc.get(dc)?.is_empty();
            let has_ac = last == 0 || !self.ac.get(ac)?.is_empty();
            (has_dc && has_ac).then_some((index, dc, ac))
        };
        let parts: Option<Vec<_>> = parts.chunks_exact(2).map(part).collect();
        Some(Scan { parts: parts?, first, last, refines })
    }

    /// Follows a scan whose data begin at `at`. Returns where they end; `None` if they do so early.
    fn follow(&mut self, scan: &Scan, jpeg: &[u8], at: usize) -> Option<usize> {
        let mut bits = Bits::new(jpeg, at);
        let alone = (scan.parts.len() == 1).then(|| &self.components[scan.parts[0].0]);
        let (across, down) =
            alone.map_or((self.mcus_across, self.mcus_down), |c| (c.across, c.down));
        let is_alone = alone.is_some();
        let mut end_of_band = 0;
        for mcu in 0..across * down {
            if self.restart > 0 && mcu > 0 && mcu % self.restart == 0 {
                bits.restart()?;
                end_of_band = 0;
            }
            let (x, y) = (mcu % across, mcu / across);
            for &(index, dc, ac) in &scan.parts {
                let c = &mut self.components[index];
                let (h, v) = if is_alone { (1, 1) } else { (c.h, c.v) };
                for i in 0..h * v {
                    let block = (y * v + i / h) * c.stride + x * h + i % h;
                    let mut unused = 0;
                    let mask = c.nonzero.get_mut(block).unwrap_or(&mut unused);
                    let tables = (self.dc.get(dc)?, self.ac.get(ac)?);
                    follow_block(&mut bits, scan, tables, mask, &mut end_of_band)?;
                }
            }
            if bits.lacks_more_than_padding() {
                return None;
            }
        }
        bits.end()
    }
}

/// Follows the codes of one block.
fn follow_block(
    bits: &mut Bits,
    scan: &Scan,
    (dc, ac): (&Table, &Table),
    mask: &mut u64,
    end_of_band: &mut u32,
) -> Option<()> {
    if scan.first == 0 {
        let size = if scan.refines { 1 } else { u32::from(bits.symbol(dc)?) };
        bits.take(size)?;
    }
    let mut k = scan.first.max(1);
    // Corrections of the coefficients that are known, up to the one after `zeros` others.
    let correct = |bits: &mut Bits, mask: u64, mut k: usize, mut zeros: u32| {
        while k <= scan.last {
            if mask >> k & 1 == 1 {
                bits.take(1)?;
            } else if zeros == 0 {
                break;
            } else {
                zeros -= 1;
            }
            k += 1;
        }
        Some(k)
    };
    while k <= scan.last && *end_of_band == 0 {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 && run < 15 {
            *end_of_band = (1 << run) + bits.take(run)?;
            break;
        }
        if scan.refines {
            // The sign bit of the new coefficient comes before the correction bits of earlier ones.
            bits.take(size)?;
            k = correct(bits, *mask, k, run)?;
        } else {
            bits.take(size)?;
            k += run as usize;
        }
        if k > scan.last {
            return if size == 0 { Some(()) } else { None };
        }
        if size > 0 {
            *mask |= 1 << k;
        }
        k += 1;
    }
    if *end_of_band > 0 {
        if scan.refines {
            correct(bits, *mask, k, u32::MAX)?;
        }
        *end_of_band -= 1;
    }
    Some(())
}

/// The bits of a scan, up to the next marker.
pub struct Bits<'a> {
    jpeg: &'a [u8],
    at: usize,
    bits: u64,
    count: u32,
    /// How many bits were taken that are not there.
    missing: u32,
}

impl<'a> Bits<'a> {
    /// Those that begin at byte `at`.
    pub fn new(jpeg: &'a [u8], at: usize) -> Bits<'a> {
        Bits { jpeg, at, bits: 0, count: 0, missing: 0 }
    }

    /// Whether more bits were taken than an encoder may have left out at the end.
    pub fn lacks_more_than_padding(&self) -> bool {
        self.missing > SPARE_BITS
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let Some(&byte) = self.jpeg.get(self.at) else { return };
            let next = self.jpeg.get(self.at + 1);
            if byte == 0xff && next != Some(&0) {
                return;
            }
            self.at += if byte == 0xff { 2 } else { 1 };
            self.bits = self.bits << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    /// The next 16 bits, ones after the end.
    fn peek(&mut self) -> usize {
        if self.count < 16 {
            self.fill();
        }
        let bits = match self.count {
            0..16 => self.bits << (16 - self.count) | ((1 << (16 - self.count)) - 1),
            _ => self.bits >> (self.count - 16),
        };
        (bits & 0xffff) as usize
    }

    /// At most 16 bits; `None` if far too few are left.
    pub fn take(&mut self, n: u32) -> Option<u32> {
        let bits = self.peek() as u32;
        self.missing += n.saturating_sub(self.count);
        self.count = self.count.saturating_sub(n);
        (self.missing <= 16 && n <= 16).then(|| if n == 0 { 0 } else { bits >> (16 - n) })
    }

    /// The symbol of the next code.
    pub fn symbol(&mut self, table: &Table) -> Option<u8> {
        let (symbol, length) = *table.get(self.peek())?;
        if length == 0 {
            return None;
        }
        self.take(u32::from(length)).map(|_| symbol)
    }

    /// Passes the restart marker that must follow.
    pub fn restart(&mut self) -> Option<()> {
        let at = self.next_marker();
        let is_restart = matches!(self.jpeg.get(at + 1), Some(0xd0..=0xd7));
        if !is_restart || self.missing > SPARE_BITS {
            return None;
        }
        (self.at, self.bits, self.count, self.missing) = (at + 2, 0, 0, 0);
        Some(())
    }

    /// The place of the next marker.
    fn next_marker(&self) -> usize {
        let mut at = self.at;
        while let Some(byte) = self.jpeg.get(at) {
            if *byte == 0xff && !matches!(self.jpeg.get(at + 1), Some(0 | 0xff)) {
                break;
            }
            at += 1;
        }
        at
    }

    /// The end of the data after the last block.
    fn end(&self) -> Option<usize> {
        let end = self.next_marker();
        let left = end - self.at + self.count as usize / 8;
        (left <= MOST_LEFT).then_some(end)
    }
}
