"""Many requests on a few kept-alive connections, side by side."""

import concurrent.futures
import contextlib
import functools

LANES = 4


def each(pool, jobs, work):
    """`work(call, job)` for each job, `call` being `pool.call` on one of the connections. Results in the jobs' order.

    A connection that the server closes meanwhile fails: one for each call would test something else, slowly.
    """
    jobs = list(jobs)
    pool.token()  # kept from here on, so that the lanes do not all ask for it

    def lane(number):
        with contextlib.closing(pool.connection()) as connection:
            connection.connect()
            opened = connection.sock
            call = functools.partial(pool.call, connection=connection)
            done = [work(call, job) for job in jobs[number::LANES]]
            assert connection.sock is opened, "the server closed a connection in use"
            return done

    results = [None] * len(jobs)
    with concurrent.futures.ThreadPoolExecutor(LANES) as threads:
        for number, done in enumerate(threads.map(lane, range(LANES))):
            results[number::LANES] = done
    return results
