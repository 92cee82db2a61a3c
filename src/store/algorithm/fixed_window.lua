-- Hits counted in windows of the clock, in one string. Twin of fixed_window.rs.
--
-- Value: two 7-byte big-endian integers,
--   number  of the window, which begins at number * window microseconds after the Unix epoch
--   count   the hits in it, 1 or more
-- The key expires when the window ends.
local function fixed_window()
  local VALUE, VALUE_SIZE = '>I7I7', 14
  local functions -- on states

  -- Until the window ends.
  local function rest(number, window)
    return (number + 1) * window - now
  end

  local function put(key, window, number, used, expires)
    call('SET', key, pack(VALUE, number, used), 'KEEPTTL')
    if not expires then call('PEXPIREAT', key, digits(math.ceil((number + 1) * window / 1000))) end
  end

  local function on_states()
    if functions then return functions end

    local function held(key, window, number, used, expires, moved)
      return { functions = functions, key = key, window = window, number = number, used = used, expires = expires,
        dirty = moved, asked = 0, sure = 0 }
    end

    -- Until the window ends, whatever is waited for.
    local function reset(counted)
      return rest(counted.number, counted.window)
    end

    local function write(counted)
      if counted.used == 0 then call('DEL', counted.key)
      else put(counted.key, counted.window, counted.number, counted.used, counted.expires) end
      counted.expires, counted.dirty = counted.used > 0, nil
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

    functions = { held = held, record = record, grant = grant, refund = refund, recorded_at = recorded_at,
      take_back = take_back, wait = reset, reset = reset, write = write }
    return functions
  end

  local function take(key, window, limit, need, amount, _, leave_new, others, position)
    local found = try('GET', key) -- try: a key of another type fails its own request alone
    local number, used = (now - now % window) / window, 0
    local expires, moved -- whether the key is set to expire when this window ends; whether Redis holds something else
    if found then
      if found.err then return nil, nil, nil, found.err end
      if #found ~= VALUE_SIZE then return nil, nil, nil, 'ERR the key holds no fixed window' end
      local stored, count = unpack(VALUE, found)
      if stored > number + 1 then
        -- Time went back by more than a window (a failover to a slower clock): its hits move to the next window from now.
        number, used, moved = number + 1, count, true
      elseif stored >= number then
        number, used, expires = stored, count, true
      end
    end
    if moved or used + need > limit then
      return nil, nil, on_states().held(key, window, number, used, expires, moved)
    end
    local new = amount > 0 and not found
    if new and leave_new then return false end
    if others and not others(position) then return end
    if amount > 0 then
      used = used + amount
      put(key, window, number, used, expires)
    end
    return used, rest(number, window), new
  end

  return { take = take, on_states = on_states }
end
