-- A whole number as a command's argument. Of a number Redis would make it by itself, before 7.2 by way of seventeen digits of a
-- fraction, which costs as much as the command. Most counters of a batch need the same ones.
local made = {}
local function digits(number)
  local text = made[number]
  if not text then
    text = string.format('%d', number)
    made[number] = text
  end
  return text
end

