#!/usr/bin/env python3
"""One agent of class object on MinIO and Redis, measured from outside; prints a Markdown table.

Each row begins with a new agent, which has taken 1 GiB before the figures begin. "Full speed": batches of 1 MiB over 16 partitions, 4 connections with 16 requests in flight
each. "Paced": PACE MB/s in batches of 16 KiB over 1 and over 1,000 partitions, and what it costs the bucket.
CPU is that of the agent's process from the first request until all closed segments are in the bucket: produce,
write-ahead log and segment upload. The figures of PUTs are the agent's metrics.

  OBJECT_LINGERS (5ms 25ms 100ms)  OBJECT_BLOCKS (3)  OBJECT_GIB (2) of a row at full speed
  OBJECT_PACE (20) MB/s  OBJECT_SECONDS (20) of a paced row  OBJECT_DIR (/dev/shm) where MinIO has its files: the
  figures are to be the agent's, not those of a disk that both share  WORK (.cache/bench-object)
  BIN measures this cirrolog instead of the one of this tree"""
import os, re, shutil, signal, statistics, subprocess, sys, tempfile, time, urllib.request

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..'))
MINIO, REDIS, KAFKA, ADMIN = 23911, 23912, 23913, 23914
USER, SECRET = 'cirrolog', 'cirrolog-secret'


def env(name, default):
    return os.environ.get(name) or default


def run(*args, **kw):
    return subprocess.run(args, check=True, **kw)


class Server:
    """A process with a log, ended with its group."""
    def __init__(self, log, *args, **env):
        self.log = log
        self.p = subprocess.Popen(args, stdout=open(log, 'ab'), stderr=subprocess.STDOUT, env={**os.environ, **env})

    def wait(self, port):
        import socket
        for _ in range(300):
            if self.p.poll() is not None:
                break
            try:
                socket.create_connection(('127.0.0.1', port), 1).close()
                return self
            except OSError:
                time.sleep(0.1)
        sys.exit('%s: the server did not start:\n%s' % (self.log, open(self.log).read()[-2000:]))

    def cpu(self):
        f = open('/proc/%d/stat' % self.p.pid).read().rsplit(')', 1)[1].split()
        return (int(f[11]) + int(f[12])) / os.sysconf('SC_CLK_TCK')

    def stop(self):
        self.p.send_signal(signal.SIGTERM)
        try:
            self.p.wait(60)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()


def metrics():
    """Sums of the agent's metrics over all labels but op."""
    out = {}
    text = urllib.request.urlopen('http://127.0.0.1:%d/metrics' % ADMIN).read().decode()
    for line in text.splitlines():
        m = re.match(r'cirrolog_(\w+?)(?:\{(.*)\})? ([\d.e+-]+)$', line)
        if m:
            op = re.search(r'op="(\w+)"', m.group(2) or '')
            for key in {m.group(1), m.group(1) + '/' + (op.group(1) if op else '')}:
                out[key] = out.get(key, 0) + float(m.group(3))
    return out


def settled():
    """Waits until nothing that is closed waits for its upload."""
    rest = 0
    while rest < 15:
        time.sleep(0.2)
        rest = rest + 1 if metrics().get('tier_lag_bytes', 0) == 0 else 0


def millis(s):
    n, unit = re.match(r'([\d.]+)(.*)', s).groups()
    return float(n) * {'ns': 1e-6, 'µs': 1e-3, 'us': 1e-3, 'ms': 1, 's': 1e3}[unit]


def row(work, linger, parts, load):
    """One agent, one load: the figures."""
    data = tempfile.mkdtemp(dir=work)
    url = 's3://bench/%s?endpoint=http://127.0.0.1:%d&region=us-east-1' % (os.path.basename(data), MINIO)
    agent = Server(work + '/agent.log', work + '/cirrolog', 'agent', '--data-dir', data, '--kafka-addr', '127.0.0.1:%d' % KAFKA,
                   '--admin-addr', '127.0.0.1:%d' % ADMIN, '--http-addr=', '--metadata', 'redis://127.0.0.1:%d' % REDIS,
                   '--bucket', url, '--wal-linger', linger, '--memory-tail', '512MiB', AWS_ACCESS_KEY_ID=USER, AWS_SECRET_ACCESS_KEY=SECRET)
    try:
        agent.wait(ADMIN)
        time.sleep(2)
        wire = [work + '/wire', 'kraw', '-addr', '127.0.0.1:%d' % KAFKA, '-pid', str(agent.p.pid), '-rounds', '1', '-parts', str(parts)]
        # Memory that was never touched costs more than all else: 1 GiB through the agent first.
        run(*wire, '-batch', str(1 << 20), '-inflight', '16', '-total', str(1 << 30), stdout=subprocess.DEVNULL, env={**os.environ, 'WIRE_TRIES': '1'})
        settled()
        m0, c0, t0 = metrics(), agent.cpu(), time.time()
        out = run(*wire, *load, capture_output=True, text=True, env={**os.environ, 'WIRE_TRIES': '1'}).stdout
        took = time.time() - t0
        settled()
        m1, c1 = metrics(), agent.cpu()
    finally:
        agent.stop()
        run('redis-cli', '-p', str(REDIS), 'flushall', stdout=subprocess.DEVNULL)
        shutil.rmtree(data, ignore_errors=True)
    if 'error' in out:
        sys.exit(out)
    gib = (m1['kafka_produce_bytes_total'] - m0['kafka_produce_bytes_total']) / (1 << 30)
    d = lambda key: m1.get(key, 0) - m0.get(key, 0)
    f = {'mbs': float(re.search(r'([\d.]+) MB/s', out).group(1)), 'gib': gib, 'cpu': (c1 - c0) / gib,
         'wal': d('wal_put_seconds_count'), 'puts': d('objstore_requests_total/put'), 'money': d('objstore_cost_dollars_total'), 'took': took}
    for q in ('p50', 'p99'):
        f[q] = millis(re.search(q + r' (\S+)', out).group(1))
    f['seconds'] = gib * (1 << 30) / 1e6 / f['mbs']
    return f


def median(fs, key):
    return statistics.median(key(f) for f in fs)


def table(cells, lingers, pace):
    print('| wal.linger | full speed MB/s | p50, p99 ms | agent CPU-s/GiB | WAL PUTs/s | PUTs/GiB, WAL + segments |\n|---|---|---|---|---|---|')
    for l in lingers:
        fs = cells[l, 'full']
        print('| %s | %.0f (%.0f - %.0f) | %.0f, %.0f | %.2f | %.1f | %.0f + %.0f |' % (l, median(fs, lambda f: f['mbs']), min(f['mbs'] for f in fs), max(f['mbs'] for f in fs),
              median(fs, lambda f: f['p50']), median(fs, lambda f: f['p99']), median(fs, lambda f: f['cpu']), median(fs, lambda f: f['wal'] / f['seconds']),
              median(fs, lambda f: f['wal'] / f['gib']), median(fs, lambda f: (f['puts'] - f['wal']) / f['gib'])))
    print('\n| wal.linger | %s MB/s over | p50, p99 ms | agent CPU-s/GiB | WAL PUTs/s | PUTs/GiB, WAL + segments | requests US$/GiB |\n|---|---|---|---|---|---|---|' % pace)
    for l in lingers:
        for parts in (1, 1000):
            fs = cells[l, parts]
            print('| %s | %d partition%s | %.1f, %.1f | %.2f | %.1f | %.0f + %.0f | %.4f |' % (l, parts, 's' if parts > 1 else '', median(fs, lambda f: f['p50']), median(fs, lambda f: f['p99']),
                  median(fs, lambda f: f['cpu']), median(fs, lambda f: f['wal'] / f['seconds']), median(fs, lambda f: f['wal'] / f['gib']),
                  median(fs, lambda f: (f['puts'] - f['wal']) / f['gib']), median(fs, lambda f: f['money'] / f['gib'])))


def main():
    work = os.path.abspath(env('WORK', ROOT + '/.cache/bench-object'))
    os.makedirs(work, exist_ok=True)
    lingers, pace, seconds = env('OBJECT_LINGERS', '5ms 25ms 100ms').split(), env('OBJECT_PACE', '20'), float(env('OBJECT_SECONDS', '20'))
    run('go', 'build', '-trimpath', '-buildvcs=false', '-o', work + '/wire', '.', cwd=ROOT + '/localstack/bench/wire', env={**os.environ, 'GOFLAGS': '-mod=mod'})
    if os.environ.get('BIN'):
        shutil.copy(os.environ['BIN'], work + '/cirrolog')
    else:
        run('go', 'build', '-tags', 'grpcnotrace', '-trimpath', '-buildvcs=false', '-o', work + '/cirrolog', './services/cirrolog', cwd=ROOT)
    store = tempfile.mkdtemp(dir=env('OBJECT_DIR', '/dev/shm'), prefix='cirrolog-bench-')
    os.makedirs(store + '/bench')
    os.environ['PATH'] = ROOT + '/.cache/bin:' + os.environ['PATH']
    servers = []
    try:
        servers.append(Server(work + '/minio.log', 'minio', 'server', '--quiet', '--address', '127.0.0.1:%d' % MINIO, '--console-address', '127.0.0.1:0', store,
                              MINIO_ROOT_USER=USER, MINIO_ROOT_PASSWORD=SECRET).wait(MINIO))
        servers.append(Server(work + '/redis.log', 'redis-server', '--port', str(REDIS), '--save', '', '--appendonly', 'no').wait(REDIS))
        cells = {}
        for _ in range(int(env('OBJECT_BLOCKS', '3'))):
            for l in lingers:
                for what in ('full', 1, 1000):
                    if what == 'full':
                        parts, load = 16, ['-batch', str(1 << 20), '-conns', '4', '-inflight', '16', '-total', str(int(float(env('OBJECT_GIB', '2')) * (1 << 30)))]
                    else:
                        parts, load = what, ['-batch', str(16 << 10), '-conns', '4', '-inflight', '64', '-pace', pace, '-total', str(int(float(pace) * 1e6 * seconds))]
                    f = row(work, l, parts, load)
                    cells.setdefault((l, what), []).append(f)
                    print(l, what, {k: round(v, 4) for k, v in f.items()}, file=sys.stderr, flush=True)
                    for name in os.listdir(store + '/bench'):
                        shutil.rmtree(store + '/bench/' + name, ignore_errors=True)
        table(cells, lingers, pace)
    finally:
        for s in reversed(servers):
            s.stop()
        shutil.rmtree(store, ignore_errors=True)


if __name__ == '__main__':
    main()
