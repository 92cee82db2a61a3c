-- A token bucket, by the generic cell rate algorithm (GCRA), in one string. Twin of token_bucket.rs.
--
-- Value: four 7-byte big-endian integers,
--   time   when it was last written, in microseconds since the Unix epoch
--   tat    } it is empty at tat + part / limit (the theoretical arrival time): whole microseconds,
--   part   } and so many limit-ths of one
--   limit  how many hits drain from it per window: the limit of the last recorded hit
-- A microsecond drains `limit` parts of a hit cut into `window` parts. In these parts all levels are whole numbers,
-- whatever the limit, so nothing is ever rounded. The key expires at most an eighth of a window after it is empty.
local function token_bucket()
  local VALUE, VALUE_SIZE = '>I7I7I7I7', 28
  local EXACT = 9007199254740992 -- 2^53, the last whole number that Lua can count to
  local algorithm

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

  -- The bucket of a key as of now, or nil and why not.
  --   at           now, or when it was last written, where time went back
  --   whole, part  what it takes to drain from then on: microseconds, and limit-ths of one
  --   expiry       a tat for which the key's expiry was set
  local function load(key, window)
    local found = try('GET', key) -- try: a key of another type fails its own request alone
    local at, whole, part, limit, used = now, 0, 0, 0, 0
    local expiry, dirty
    if found then
      if found.err then return nil, found.err end
      if #found ~= VALUE_SIZE then return nil, 'ERR the key holds no token bucket' end
      local time, tat, tat_part, tat_limit = unpack(VALUE, found)
      if time > now + window then
        -- Time went back by more than a window (a failover to a slower clock): it was last written at now + window.
        at, tat, dirty = now + window, tat - (time - now - window), true
      else
        at, expiry = math.max(now, time), tat
      end
      if tat >= at then
        whole, part, limit = tat - at, tat_part, tat_limit
        used = level(whole, part, limit, window)
      end
    end
    return { algorithm = algorithm, key = key, window = window, at = at, whole = whole, part = part, limit = limit,
      used = used, expiry = expiry, dirty = dirty, asked = 0, sure = 0 }
  end

  local function write(bucket)
    local key, expiry, tat = bucket.key, bucket.expiry, bucket.at + bucket.whole
    if bucket.used == 0 then
      call('DEL', key)
      tat = nil
    else
      call('SET', key, pack(VALUE, bucket.at, tat, bucket.part, bucket.limit), 'KEEPTTL')
      local step = bucket.window / 8 -- the expiry is set once in so long, and reaches one step further
      if not expiry or tat - tat % step ~= expiry - expiry % step then
        call('PEXPIRE', key, digits(math.ceil((tat + 1 + step - now) / 1000)))
      end
    end
    bucket.expiry, bucket.dirty = tat, nil
  end

  -- Fills in hits. From now on the bucket drains by this limit.
  local function record(bucket, hits, limit)
    local whole, part = divide(hits, bucket.window, limit)
    if bucket.limit == limit then
      part = part + bucket.part
      whole = whole + bucket.whole
    else
      local left, rest = divide(bucket.whole, bucket.limit, limit)
      whole = whole + left
      part = part + rest + bucket.part
    end
    local rest = part % limit
    bucket.whole, bucket.part, bucket.limit = whole + (part - rest) / limit, rest, limit
    bucket.used, bucket.dirty = bucket.used + hits, true
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

  -- Until its level is at most `hits`, fewer than now, in microseconds.
  local function wait(bucket, hits)
    local whole, part = divide(hits, bucket.window, bucket.limit)
    return bucket.at - now + bucket.whole - whole + (bucket.part > part and 1 or 0)
  end

  -- Until there is room for one hit more under `limit`; 0 if it is empty, -1 if there never is.
  local function reset(bucket, limit)
    if bucket.used == 0 then return 0 end
    if limit == 0 then return -1 end
    return wait(bucket, math.min(bucket.used, limit) - 1)
  end

  algorithm = { load = load, record = record, refund = refund, recorded_at = recorded_at, take_back = take_back,
    wait = wait, reset = reset, write = write }
  return algorithm
end

