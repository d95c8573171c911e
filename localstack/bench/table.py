"""The table of a side-by-side run: medians, and the ratios inside each block as
median and 95 % confidence interval of the geometric mean (t on the logs)."""
import collections, math, re, statistics, sys

T = [0, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20]  # 97.5 %, by degrees of freedom
THROUGHPUT = re.compile(r'([\w-]+)\|(.*?)\|(PRODUCE|FETCH).*?:\s+(\d+) MB/s.*?(\d+) rec/s\s+broker ([\d.]+).*?rss (\d+)MB')
E2E = re.compile(r'([\w-]+)\|(.*?)\|e2e .*?broker ([\d.]+).*?\(broker ([\d.]+)% core\) rss (\d+) MB\s+e2e\s+(.*?)\s+ack')


def millis(s):
    n, unit = re.match(r'([\d.]+)(.*)', s).groups()
    return float(n) * {'ns': 1e-6, 'µs': 1e-3, 'us': 1e-3, 'ms': 1, 's': 1e3}[unit]


def ratio(a, b):
    logs = [math.log(x / y) for x, y in zip(a, b) if x > 0 and y > 0]
    if not logs:
        return '-'
    text = '%.2f' % math.exp(statistics.median(logs))
    if len(logs) > 1:
        half = T[min(len(logs) - 1, len(T) - 1)] * statistics.stdev(logs) / math.sqrt(len(logs))
        mid = statistics.mean(logs)
        text += ' (%.2f-%.2f)' % (math.exp(mid - half), math.exp(mid + half))
    return text


def main(path):
    cells = collections.defaultdict(lambda: collections.defaultdict(list))
    for line in open(path):
        if m := THROUGHPUT.match(line):
            name, row, kind, mb, _, cpu, rss = m.groups()
            cells[kind.lower() + ' ' + row][name].append((float(mb), float(cpu), float(rss)))
        elif m := E2E.match(line):
            name, row, cpu, core, rss, lat = m.groups()
            p = dict(re.findall(r'(p\d+)[ =]([\d.]+[nµum]?s)', lat))
            cells['e2e ' + row][name].append((millis(p['p50']), millis(p['p99']), float(core)))
    names = [n for n in ('ours', 'floor', 'kafka', 'kafka-flush') if any(n in by for by in cells.values())]
    others = [n for n in names if n != 'ours']
    print('| work | ' + ' | '.join(names) + ' | ' + ' | '.join('MB/s ours : %s | CPU ours : %s' % (n, n) for n in others) + ' |')
    print('|---' * (1 + len(names) + 2 * len(others)) + '|')
    for row, by in cells.items():
        e2e = row.startswith('e2e')
        form = 'p50 %.2f, p99 %.2f ms, %.0f %% of a core' if e2e else '%.0f MB/s, %.2f CPU-s/GiB, RSS %.0f MB'
        cols = [form % tuple(statistics.median(x[i] for x in by[n]) for i in range(3)) if by[n] else '-' for n in names]
        for n in others:
            for i in ((1, 2) if e2e else (0, 1)):
                cols.append(('p99 ' if e2e and i == 1 else '') + ratio([x[i] for x in by['ours']], [x[i] for x in by[n]]))
        print('| %s | %s |' % (row, ' | '.join(cols)))


main(sys.argv[1])
