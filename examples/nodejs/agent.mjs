// A support agent in Node.js without packages: gspo-train starts it once for each conversation, in a fresh folder.
import { readFileSync } from "node:fs";

const { OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL } = process.env;
const row = JSON.parse(readFileSync("problem.json", "utf8")).metadata;
const orders = new Map(row.orders.map(([id, , status]) => [id, status])), stock = new Map(row.stock);
const tools = [
  ["get_order", "Look up an order", "order", "number of the order"],
  ["get_stock", "Look up how many there are", "item", "name of the item"],
].map(([name, description, argument, meaning]) => {
  const properties = { [argument]: { type: "string", description: meaning } };
  return { type: "function", function: { name, description, parameters: { type: "object", properties, required: [argument] } } };
});
const shown = (question, name, given, result, reply) => [
  { role: "user", content: question },
  { role: "assistant", tool_calls: [{ id: name, type: "function", function: { name, arguments: JSON.stringify(given) } }] },
  { role: "tool", tool_call_id: name, content: result },
  { role: "assistant", content: reply }];
const messages = [
  { role: "system", content: "You work for a shop. Use a tool, then tell the customer in a short sentence what it said." },
  ...shown("Where is order 512?", "get_order", { order: "512" }, "order 512: shipped", "Order 512 is shipped."),
  ...shown("Is there a sofa?", "get_stock", { item: "sofa" }, "sofa: 3 left", "Yes, 3 of the sofa are left."),
  { role: "user", content: row.prompt }];

function call(name, { order, item }) {
  if (name === "get_order") return orders.has(order) ? `order ${order}: ${orders.get(order)}` : `error: there is no order ${order}`;
  return stock.has(item) ? `${item}: ${stock.get(item)} left` : `error: there is no ${item}`;
}

let results = "", reply = "";
for (let turn = 0; turn < 3 && !reply; turn++) {
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${OPENAI_API_KEY}` };
  const body = JSON.stringify({ model: OPENAI_MODEL, messages, tools });
  const response = await fetch(`${OPENAI_BASE_URL}/chat/completions`, { method: "POST", headers, body });
  if (!response.ok) throw new Error(await response.text());
  const { message } = (await response.json()).choices[0];
  messages.push(message);
  for (const { id, function: asked } of message.tool_calls ?? []) {
    const content = call(asked.name, JSON.parse(asked.arguments));
    results += ` ${content}`;
    messages.push({ role: "tool", tool_call_id: id, content });
  }
  if (!message.tool_calls) reply = message.content || "-";
}
const [lookedUp, told] = [results, reply].map((text) => (text.match(/\w+/g) ?? []).includes(row.told));
console.log(JSON.stringify({ reward: 0.5 * lookedUp + 0.5 * (lookedUp && told) }));
