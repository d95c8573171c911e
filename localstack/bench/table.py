"""The table of a side-by-side run: medians, and the ratios inside each block as
median, 95 % confidence interval of the geometric mean (t on the logs) and in
how many blocks ours was better."""
import collections, math, re, statistics, sys

T = [0, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20]  # 97.5 %, by degrees of freedom
KEY = r'(\d+)\|([\w-]+)\|(.*?)\|'
THROUGHPUT = re.compile(KEY + r'(PRODUCE|FETCH|FULL).*?:\s+(\d+) MB/s.*?(\d+) rec/s\s+broker ([\d.]+).*?rss (\d+)MB')
E2E = re.compile(KEY + r'e2e .*?broker ([\d.]+).*?\(broker ([\d.]+)% core\) rss (\d+) MB\s+e2e\s+(.*?)\s+ack')
START = re.compile(KEY + r'START first ack ([\d.]+) ms \| idle rss ([\d.]+) MB cpu ([\d.]+) %.*?threads (\d+) fds (\d+)')
SERVERS = ('ours', 'floor', 'kafka', 'kafka-growing', 'kafka-flush')
# By kind of row: how a cell is written, and which figures are compared (index, name, less is better).
FORMS = {
    'throughput': ('%.0f MB/s, %.2f CPU-s/GiB, RSS %.0f MB', [(0, 'MB/s', False), (1, 'CPU', True)]),
    'full': ('%.0f MB/s, %.2f CPU-s/GiB, RSS %.0f MB', [(1, 'CPU', True)]),
    'e2e': ('p50 %.2f, p99 %.2f ms, %.0f %% of a core', [(1, 'p99', True), (2, 'CPU', True)]),
    'start': ('%.0f ms; idle %.0f MB, %.1f %% of a core, %.0f threads, %.0f fds', [(0, 'time', True), (1, 'RSS', True)]),
}


def millis(s):
    n, unit = re.match(r'([\d.]+)(.*)', s).groups()
    return float(n) * {'ns': 1e-6, 'µs': 1e-3, 'us': 1e-3, 'ms': 1, 's': 1e3}[unit]


def ratio(pairs, less):
    """Of (ours, theirs) by block."""
    logs = [math.log(x / y) for x, y in pairs if x > 0 and y > 0]
    if not logs:
        return '-'
    text = '%.2f' % math.exp(statistics.median(logs))
    if len(logs) > 1:
        half = T[min(len(logs) - 1, len(T) - 1)] * statistics.stdev(logs) / math.sqrt(len(logs))
        mid = statistics.mean(logs)
        text += ' (%.2f-%.2f, %d/%d)' % (math.exp(mid - half), math.exp(mid + half), sum((x < 0) == less for x in logs), len(logs))
    return text


def parse(path):
    """cells[row] = (kind, {server: {block: figures}})."""
    cells = collections.OrderedDict()

    def put(kind, row, server, block, *figures):
        cells.setdefault(row, (kind, collections.defaultdict(dict)))[1][server][int(block)] = [float(x) for x in figures]

    for line in open(path):
        if m := THROUGHPUT.match(line):
            block, server, row, kind, mb, _, cpu, rss = m.groups()
            put('full' if kind == 'FULL' else 'throughput', ('' if kind == 'FULL' else kind.lower() + ' ') + row, server, block, mb, cpu, rss)
        elif m := E2E.match(line):
            block, server, row, _, core, _, lat = m.groups()
            p = dict(re.findall(r'(p\d+)[ =]([\d.]+[nµum]?s)', lat))
            put('e2e', 'end to end ' + row, server, block, millis(p['p50']), millis(p['p99']), core)
        elif m := START.match(line):
            block, server, row, *figures = m.groups()
            put('start', 'start to first ack, ' + row, server, block, *figures)
    return cells


def main(path):
    cells = parse(path)
    print('Medians of the blocks; ours : theirs as median ratio (95 % interval, blocks in which ours is better).\n')
    servers = [s for s in SERVERS if any(s in by for _, by in cells.values())]
    print('| work | ' + ' | '.join(servers) + ' |\n' + '|---' * (1 + len(servers)) + '|')
    for row, (kind, by) in cells.items():
        form, compared = FORMS[kind]
        cols = []
        for s in servers:
            blocks = by.get(s)
            if not blocks:
                cols.append('')
                continue
            text = form % tuple(statistics.median(col) for col in zip(*blocks.values()))
            if s != 'ours' and 'ours' in by:
                for i, name, less in compared:
                    text += '<br>%s %s' % (name, ratio([(by['ours'][b][i], v[i]) for b, v in sorted(blocks.items()) if b in by['ours']], less))
            cols.append(text)
        print('| %s | %s |' % (row, ' | '.join(cols)))


main(sys.argv[1])
