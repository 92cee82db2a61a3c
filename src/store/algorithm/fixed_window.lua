-- Hits counted in windows of the clock, in one string. Twin of fixed_window.rs.
--
-- Value: two 7-byte big-endian integers,
--   number  of the window, which begins at number * window microseconds after the Unix epoch
--   count   the hits in it, 1 or more
-- The key expires when the window ends.
local function fixed_window()
  local VALUE, VALUE_SIZE = '>I7I7', 14
  local algorithm

  -- The window of a key as of now, or nil and why not.
  --   expires  the key is set to expire when this window ends
  local function load(key, window)
    local found = try('GET', key) -- try: a key of another type fails its own request alone
    local number, used = (now - now % window) / window, 0
    local expires, dirty
    if found then
      if found.err then return nil, found.err end
      if #found ~= VALUE_SIZE then return nil, 'ERR the key holds no fixed window' end
      local stored, count = unpack(VALUE, found)
      if stored > number + 1 then
        -- Time went back by more than a window (a failover to a slower clock): its hits move to the next window from now.
        number, used, dirty = number + 1, count, true
      elseif stored >= number then
        number, used, expires = stored, count, true
      end
    end
    return { algorithm = algorithm, key = key, window = window, number = number, used = used, expires = expires,
      dirty = dirty, asked = 0, sure = 0 }
  end

  -- Until the window ends, whatever is waited for.
  local function reset(counted)
    return (counted.number + 1) * counted.window - now
  end

  local function write(counted)
    if counted.used == 0 then
      call('DEL', counted.key)
      counted.expires = nil
    else
      call('SET', counted.key, pack(VALUE, counted.number, counted.used), 'KEEPTTL')
      if not counted.expires then call('PEXPIRE', counted.key, digits(math.ceil(reset(counted) / 1000))) end
      counted.expires = true
    end
    counted.dirty = nil
  end

  local function record(counted, hits)
    counted.used, counted.dirty = counted.used + hits, true
  end

  local function grant(counted, hits, tick)
    local soon = now + math.floor(tick / 4)
    record(counted, hits)
    return math.min(soon - soon % tick + tick - 1 - now, reset(counted))
  end

  local function refund(counted, hits)
    if counted.used > 0 then counted.used, counted.dirty = math.max(counted.used - hits, 0), true end
  end

  local function recorded_at(counted)
    return counted.number
  end

  local function take_back(counted, hits, number)
    if counted.number == number then refund(counted, hits) end
  end

  algorithm = { load = load, record = record, grant = grant, refund = refund, recorded_at = recorded_at, take_back = take_back,
    wait = reset, reset = reset, write = write }
  return algorithm
end

