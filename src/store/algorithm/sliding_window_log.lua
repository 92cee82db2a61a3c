-- A sliding-window log in one sorted set. Twin of sliding_window_log.rs.
--
-- An entry holds the hits of one tick (1 us when the log is exact). Score: -time, so rank 0 is the newest entry. Member:
-- five 7-byte big-endian integers,
--   time    when the entry's hits count as made, in microseconds since the Unix epoch
--   before  the log's running total before the entry's hits
--   after   the same after them
--   base    the total below which all hits have left or were refunded   } true in the newest entry only,
--   first   the time of the oldest entry still counted                  } which is the log's header
-- Hits still counted: after - base of the header. Totals run modulo 2^53, the last whole number that Lua can count to.
-- (So two of them are added as a - 2^53 + b.)
-- A hit made at `time` counts until time + window, that moment excluded. The key expires when the newest has left, or up to a
-- quarter of a window later.
local function sliding_window_log()
  local ENTRY, ENTRY_SIZE = '>I7I7I7I7I7', 35
  local NOTHING = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' -- a log that is not there, as an entry
  local functions -- on states
  local scored, score -- a time, and what it is as a score: that of most entries of a batch

  -- Puts what counts into Redis, that is, a header of this time.
  --   stored, left  as in take
  --   expiry        a time for which the key's expiry was set
  local function put(key, window, time, header, stored, left, expiry)
    if time ~= scored then scored, score = time, digits(-time) end
    call('ZADD', key, score, header)
    -- What goes goes after ZADD: a key that lost its only member would lose its expiry, and while its slot moves, its place.
    if left then call('ZREMRANGEBYRANK', key, digits(left), '-1') end
    if stored and stored ~= header then call('ZREM', key, stored) end
    local step = window / 4 -- the expiry is set once in so long, and reaches one step further
    if time - time % step ~= expiry - expiry % step then
      call('PEXPIREAT', key, digits(math.ceil((time + window + step) / 1000)))
    end
  end

  local function on_states()
    if functions then return functions end

    local function held(key, window, time, before, after, base, first, used, stored, left)
      return { functions = functions, key = key, window = window, time = time, before = before, after = after, base = base,
        first = first, used = used, stored = stored, left = left, expiry = time, asked = 0, sure = 0 }
    end

    local function write(log)
      local header = pack(ENTRY, log.time, log.before, log.after, log.base, log.first)
      put(log.key, log.window, log.time, header, log.stored, log.left, log.expiry)
      log.stored, log.expiry, log.dirty, log.left = header, log.time, nil, nil
    end

    -- Records hits at this time, or later, in the newest entry, where time went ahead.
    local function record_at(log, hits, at)
      if at > log.time then
        if log.dirty then write(log) end
        log.stored, log.time, log.before = nil, at, log.after
        if log.first == 0 then log.first = at end
      end
      log.after, log.used, log.dirty = (log.after - 2^53 + hits) % 2^53, log.used + hits, true
    end

    -- At the end of the current tick.
    local function record(log, hits, tick)
      record_at(log, hits, now - now % tick + tick - 1)
    end

    local function grant(log, hits, tick)
      local soon = now + math.floor(tick / 4)
      local ends = soon - soon % tick + tick - 1
      record_at(log, hits, ends)
      return ends - now
    end

    -- The time of the oldest entry by whose leaving so many of the counted hits have left. Binary search by rank.
    local function nth(log, hits)
      if log.dirty then write(log) end
      local newest, oldest = 0, call('ZCOUNT', log.key, '-inf', log.window - now - 1) - 1
      while newest < oldest do
        local rank = math.ceil((newest + oldest) / 2)
        local _, _, after = unpack(ENTRY, call('ZRANGE', log.key, rank, rank)[1])
        if (after - log.base) % 2^53 >= hits then newest = rank else oldest = rank - 1 end
      end
      return (unpack(ENTRY, call('ZRANGE', log.key, newest, newest)[1]))
    end

    -- Takes the oldest hits out, as if they had left.
    local function refund(log, hits)
      if hits >= log.used then
        if log.first > 0 then
          call('DEL', log.key)
          log.time, log.before, log.after, log.base, log.first, log.used, log.expiry = 0, 0, 0, 0, 0, 0, 0
          log.stored, log.dirty, log.left = nil, nil, nil
        end
      elseif hits > 0 then
        log.first = nth(log, hits + 1)
        log.base = (log.base - 2^53 + hits) % 2^53
        call('ZREMRANGEBYSCORE', log.key, '(' .. digits(-log.first), '+inf')
        if log.first == log.time then log.before = log.base end -- or one entry, filled and refunded for long, would span 2^53
        log.used, log.left, log.dirty = log.used - hits, nil, true
      end
    end

    local function recorded_at(log)
      return log.time
    end

    -- Takes hits out of the entry of that time, and out of the totals of those after it; an entry left empty goes.
    local function take_back(log, hits, time)
      if log.used == 0 or time < log.first then return end -- They have left.
      if log.dirty then write(log) end
      local key, header = log.key, log.stored
      local entries = call('ZRANGEBYSCORE', key, '-inf', -time) -- the newest first, the one of that time last
      local rank = #entries
      if rank == 0 then return end
      local at, before, after = unpack(ENTRY, entries[rank])
      if at ~= time then return end
      local counted = math.min((after - before) % 2^53, (after - log.base) % 2^53)
      hits = math.min(hits, counted)
      if hits >= log.used then return refund(log, hits) end
      for i = 2, rank do
        local other_at, other_before, other_after = unpack(ENTRY, entries[i])
        if i < rank then other_before = (other_before - hits) % 2^53 end
        if i < rank or hits < counted then
          call('ZADD', key, -other_at, pack(ENTRY, other_at, other_before, (other_after - hits) % 2^53, 0, 0))
        end
        call('ZREM', key, entries[i]) -- after ZADD, as in put
      end
      if hits == counted and time == log.first then log.first = (unpack(ENTRY, entries[rank - 1])) end
      if hits == counted and rank == 1 then
        log.stored = call('ZRANGE', key, 1, 1)[1]
        log.time, log.before, log.after = unpack(ENTRY, log.stored)
        call('ZREM', key, header)
      else
        if rank > 1 then log.before = (log.before - hits) % 2^53 end
        log.after = (log.after - hits) % 2^53
      end
      if log.first == log.time then log.before = log.base end -- as in refund
      log.used, log.dirty = log.used - hits, true
    end

    -- Until at most `hits`, fewer than now, are counted, in microseconds.
    local function wait(log, hits)
      local leaving, time = log.used - hits, log.first
      if leaving > 1 then time = nth(log, leaving) end
      return time + log.window - now
    end

    -- Until the oldest hits leave; 0 if there are none.
    local function reset(log)
      if log.first == 0 then return 0 end
      return log.first + log.window - now
    end

    functions = { held = held, record = record, grant = grant, refund = refund, recorded_at = recorded_at,
      take_back = take_back, wait = wait, reset = reset, write = write }
    return functions
  end

  local function take(key, window, limit, need, amount, tick, leave_new, others, position)
    local found = try('ZRANGE', key, '0', '0') -- try: a key of another type fails its own request alone
    if found.err then return nil, nil, nil, found.err end
    -- The header's member in Redis, which the next header replaces. nil: there is none, or it stays, as an older entry.
    local stored = found[1] or NOTHING
    if #stored ~= ENTRY_SIZE then return nil, nil, nil, 'ERR the key holds no sliding-window log' end
    local time, before, after, base, first = unpack(ENTRY, stored)
    -- The rank of the newest entry that has left, once a newer one is recorded: from the end where it is below 0, and 1 where all
    -- have left.
    local left
    if time <= now - window then
      left = time > 0 and 1 or nil
      time, before, after, base, first, stored = 0, 0, 0, 0, 0, nil
    elseif time > now + window then
      -- Time went back by more than a window (a failover to a slower clock): what lies further ahead moves to now + window.
      time = now + window
      local ahead = call('ZRANGEBYSCORE', key, '-inf', -time)
      local _
      _, before = unpack(ENTRY, ahead[#ahead])
      if first > time then first = time end
      stored = pack(ENTRY, time, before, after, base, first)
      call('ZREMRANGEBYSCORE', key, '-inf', -time)
      call('ZADD', key, -time, stored)
      call('PEXPIREAT', key, math.ceil((time + window + window / 4) / 1000))
    elseif first <= now - window then
      -- Mostly one or two entries have left, and stand at the end, where they are found and removed at once by their ranks. To
      -- remove a range of scores Redis passes all newer entries of a small set, and so does ZREVRANK.
      local oldest
      local tail = call('ZRANGE', key, '-4', '-1')
      for i = #tail, 1, -1 do
        if unpack('>I7', tail[i]) > now - window then
          oldest, left = tail[i], i - #tail
          break
        end
      end
      if not oldest then
        oldest = call('ZREVRANGEBYSCORE', key, digits(window - now - 1), '-inf', 'LIMIT', '0', '1')[1]
        left = -call('ZREVRANK', key, oldest)
      end
      if left == 0 then left = nil end -- Nothing older is stored; as a rank it would be that of all.
      local oldest_before
      first, oldest_before = unpack(ENTRY, oldest)
      if (after - oldest_before) % 2^53 < (after - base) % 2^53 then base = oldest_before end
    end
    local used = (after - base) % 2^53
    if used + need > limit then
      return nil, nil, on_states().held(key, window, time, before, after, base, first, used, stored, left)
    end
    local new = amount > 0 and first == 0 and not left
    if new and leave_new then return false end
    if others and not others(position) then return end
    if amount > 0 then
      local at, expiry = now - now % tick + tick - 1, time -- the end of the current tick
      if at > time then
        stored, time, before = nil, at, after
        if first == 0 then first = at end
      end
      used = used + amount
      put(key, window, time, pack(ENTRY, time, before, (after - 2^53 + amount) % 2^53, base, first), stored, left, expiry)
    end
    return used, first == 0 and 0 or first + window - now, new
  end

  return { take = take, on_states = on_states }
end
