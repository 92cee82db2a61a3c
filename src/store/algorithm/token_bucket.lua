-- A token bucket, by the generic cell rate algorithm (GCRA), in one string. Twin of token_bucket.rs.
--
-- Value: four 7-byte big-endian integers,
--   time   when it was last written, in microseconds since the Unix epoch
--   tat    } it is empty at tat + part / limit (the theoretical arrival time): whole microseconds,
--   part   } and so many limit-ths of one
--   limit  how many hits drain from it per window: the limit of the last recorded hit
-- A microsecond drains `limit` parts of a hit cut into `window` parts. In these parts all levels are whole numbers,
-- whatever the limit, so nothing is ever rounded. The key expires at most a quarter of a window after it is empty, or half of one
-- where hits were given back.
local function token_bucket()
  local VALUE, VALUE_SIZE = '>I7I7I7I7', 28
  local EXACT = 9007199254740992 -- 2^53, the last whole number that Lua can count to
  local LIMIT_MOST = 10^15 -- as in limit.rs
  local NO_BUCKET = 'ERR the key holds no token bucket'
  local functions -- on states

  -- a * b / c as quotient and remainder, for a product far above 2^53 too: then digit by digit of a, from the highest on,
  -- to a base so small that no step leaves 2^53. b and c are at most 10^15, and the quotient is below 2^53.
  local function divide(a, b, c)
    local product = a * b
    if product < EXACT then
      local rest = product % c
      return (product - rest) / c, rest
    end
    local base, place, quotient, rest = math.floor(EXACT / (b + c)), 1, 0, 0
    while place * base <= a do place = place * base end
    while place >= 1 do
      local below = a % place
      product = rest * base + (a - below) / place * b
      rest = product % c
      quotient = quotient * base + (product - rest) / c
      a, place = below, place / base
    end
    return quotient, rest
  end

  -- The hits, rounded up, that drain in so many microseconds and limit-ths of one.
  local function level(whole, part, limit, window)
    local hits, rest = divide(whole, limit, window)
    return hits + math.ceil((rest + part) / window)
  end

  -- Puts what it holds, which is something, into Redis. The new tat.
  local function put(key, window, at, whole, part, limit, expiry)
    local tat = at + whole
    call('SET', key, pack(VALUE, at, tat, part, limit), 'KEEPTTL')
    local step = window / 4 -- the expiry is set once in so long, and reaches one step further
    if not expiry or tat - tat % step ~= expiry - expiry % step then
      call('PEXPIREAT', key, digits(math.ceil((tat + 1 + step) / 1000)))
    end
    return tat
  end

  -- What there is to drain, by this limit from now on, once hits are filled into what drained by the limit before.
  local function filled(whole, part, before, hits, window, limit)
    local more, more_part = divide(hits, window, limit)
    if before ~= limit then
      local rest
      whole, rest = divide(whole, before, limit)
      part = part + rest
    end
    part = part + more_part
    local rest = part % limit
    return whole + more + (part - rest) / limit, rest
  end

  -- Until there are at most `hits`, fewer than now, in microseconds.
  local function rest_of(at, whole, part, limit, window, hits)
    local kept, kept_part = divide(hits, window, limit)
    return at - now + whole - kept + (part > kept_part and 1 or 0)
  end

  -- Until there is room for one hit more under `burst`; 0 where it is empty, -1 where there never is.
  local function reset_of(at, whole, part, limit, window, used, burst)
    if used == 0 then return 0 end
    if burst == 0 then return -1 end
    return rest_of(at, whole, part, limit, window, math.min(used, burst) - 1)
  end

  local function on_states()
    if functions then return functions end

    local function held(key, window, at, whole, part, limit, used, expiry, moved)
      return { functions = functions, key = key, window = window, at = at, whole = whole, part = part, limit = limit,
        used = used, expiry = expiry, dirty = moved, asked = 0, sure = 0 }
    end

    local function write(bucket)
      if bucket.used == 0 then
        call('DEL', bucket.key)
        bucket.expiry = nil
      else
        bucket.expiry = put(bucket.key, bucket.window, bucket.at, bucket.whole, bucket.part, bucket.limit, bucket.expiry)
      end
      bucket.dirty = nil
    end

    local function record(bucket, hits, limit)
      bucket.whole, bucket.part = filled(bucket.whole, bucket.part, bucket.limit, hits, bucket.window, limit)
      bucket.limit, bucket.used, bucket.dirty = limit, bucket.used + hits, true
    end

    local function refund(bucket, hits)
      if hits >= bucket.used then
        bucket.dirty = bucket.dirty or bucket.used > 0
        bucket.whole, bucket.part, bucket.used = 0, 0, 0
      else
        local whole, part = divide(hits, bucket.window, bucket.limit)
        whole, part = bucket.whole - whole, bucket.part - part
        if part < 0 then whole, part = whole - 1, part + bucket.limit end
        bucket.whole, bucket.part, bucket.used, bucket.dirty = whole, part, bucket.used - hits, true
      end
    end

    local function recorded_at(bucket)
      return bucket.at
    end

    -- What may have drained since of what the hits filled in is not theirs any more: had the bucket been empty meanwhile, the
    -- hits alone would have drained.
    local function take_back(bucket, hits, at)
      if bucket.used == 0 then return end
      local whole, part = divide(hits, bucket.window, bucket.limit)
      whole = whole - math.max(bucket.at - at, 0)
      if whole < 0 then return end
      whole, part = bucket.whole - whole, bucket.part - part
      if part < 0 then whole, part = whole - 1, part + bucket.limit end
      if whole < 0 then whole, part = 0, 0 end
      bucket.whole, bucket.part, bucket.used, bucket.dirty = whole, part, level(whole, part, bucket.limit, bucket.window), true
    end

    local function wait(bucket, hits)
      return rest_of(bucket.at, bucket.whole, bucket.part, bucket.limit, bucket.window, hits)
    end

    local function reset(bucket, burst)
      return reset_of(bucket.at, bucket.whole, bucket.part, bucket.limit, bucket.window, bucket.used, burst)
    end

    functions = { held = held, record = record, refund = refund, recorded_at = recorded_at,
      take_back = take_back, wait = wait, reset = reset, write = write }
    return functions
  end

  local function take(key, window, burst, need, amount, pace, leave_new, others, position)
    local found = try('GET', key) -- try: a key of another type fails its own request alone
    -- Now, or when it was last written, where time went back; what it takes to drain from then on, in microseconds and limit-ths
    -- of one; the limit by which it drains; and the hits in it, rounded up.
    local at, whole, part, limit, used = now, 0, 0, 0, 0
    local expiry, moved -- a tat for which the key's expiry was set; whether Redis holds something else
    if found then
      if found.err then return nil, nil, nil, found.err end
      if #found ~= VALUE_SIZE then return nil, nil, nil, NO_BUCKET end
      local time, tat, stored_part, stored_limit = unpack(VALUE, found)
      if stored_limit > LIMIT_MOST then return nil, nil, nil, NO_BUCKET end -- Not ours, and more than divide can take.
      if time > now + window then
        -- Time went back by more than a window (a failover to a slower clock): it was last written at now + window.
        at, tat, moved = now + window, tat - (time - now - window), true
      else
        at, expiry = math.max(now, time), tat
      end
      if tat >= at then
        whole, part, limit = tat - at, stored_part, stored_limit
        used = level(whole, part, limit, window)
      end
    end
    if moved or used + need > burst then
      return nil, nil, on_states().held(key, window, at, whole, part, limit, used, expiry, moved)
    end
    local new = amount > 0 and not expiry
    if new and leave_new then return false end
    if others and not others(position) then return end
    if amount > 0 then
      whole, part = filled(whole, part, limit, amount, window, pace)
      limit, used = pace, used + amount
      put(key, window, at, whole, part, limit, expiry)
    end
    return used, reset_of(at, whole, part, limit, window, used, burst), new
  end

  return { take = take, on_states = on_states }
end
