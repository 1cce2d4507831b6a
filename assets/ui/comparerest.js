// The lower part of a comparison, beneath the curves.
import { rest } from "./compare.js";

export const mount = ({ element }) => rest(element.querySelector(".mount"));
